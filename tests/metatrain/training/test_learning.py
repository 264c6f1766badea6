"""Every algorithm learns on a small problem, with the defaults of its paper."""

import pytest

from benchmarks.small_problems import ALGORITHMS, learning_curve


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_algorithm_with_its_papers_defaults_learns(algorithm: str) -> None:
    """Train on some tasks, and compare the query loss of other tasks before and after training."""
    (_, before), (_, after) = learning_curve(algorithm, steps=100, every=100)
    assert after < 0.9 * before
