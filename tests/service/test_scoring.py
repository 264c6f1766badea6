"""Scores against sums done by hand."""

import pytest

from service.predicting.scoring import OfLabel, score


def test_scores_of_seven_examples() -> None:
    found = score(list("aaabbcc"), list("aabbbda"))
    assert found.accuracy == pytest.approx(4 / 7) and found.mistakes == [2, 5, 6]
    assert found.labels == {
        "a": OfLabel(2 / 3, 2 / 3, 2 / 3, 3),
        "b": OfLabel(2 / 3, 1.0, 0.8, 2),
        "c": OfLabel(0.0, 0.0, 0.0, 2),
        "d": OfLabel(0.0, 0.0, 0.0, 0),
    }
    assert found.macro_f1 == pytest.approx((2 / 3 + 0.8) / 4)
    assert found.confusion == {"a": {"a": 2, "b": 1}, "b": {"b": 2}, "c": {"a": 1, "d": 1}}


def test_all_right() -> None:
    found = score(["a", "b"], ["a", "b"])
    assert (found.accuracy, found.macro_f1, found.mistakes) == (1.0, 1.0, [])
