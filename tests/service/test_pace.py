"""The estimate of how long forward passes take, against an exact line."""

import random

from pytest import approx

from service.predicting.pace import Pace


def test_the_line_through_passes_of_several_sizes_is_found() -> None:
    pace, rng = Pace(), random.Random(0)
    for _ in range(50):
        tokens = rng.choice([10, 200, 1000])
        pace.observe(tokens, 0.02 + tokens / 5000)
    assert pace.efficient_tokens == approx(4 * 0.02 * 5000, rel=1e-6)
    assert pace.seconds(2500, 1000) == approx(3 * 0.02 + 0.5, rel=1e-6)


def test_nothing_is_estimated_from_few_passes_and_no_overhead_from_passes_of_one_size() -> None:
    pace = Pace()
    for _ in range(4):
        pace.observe(100, 0.1)
    assert pace.seconds(10**6, 1000) == 0.0 and pace.efficient_tokens is None
    pace.observe(100, 0.1)
    assert pace.seconds(10**6, 1000) == approx(1000.0) and pace.efficient_tokens == 0


def test_a_machine_that_gets_slower_is_followed() -> None:
    pace = Pace()
    for speed in (1, 4):
        for number in range(150):
            tokens = 100 if number % 2 else 1000
            pace.observe(tokens, speed * (0.01 + tokens / 10_000))
    assert pace.seconds(1000, 1000) == approx(4 * 0.11, rel=0.05)
