"""Scores against values computed by hand."""

import pytest

from service.predicting.scoring import ScoresOfLabel, score


def test_scores_of_seven_examples() -> None:
    scores = score(list("aaabbcc"), list("aabbbda"))
    assert scores.accuracy == pytest.approx(4 / 7) and scores.mistakes == [2, 5, 6]
    assert scores.labels == {
        "a": ScoresOfLabel(2 / 3, 2 / 3, 2 / 3, 3),
        "b": ScoresOfLabel(2 / 3, 1.0, 0.8, 2),
        "c": ScoresOfLabel(0.0, 0.0, 0.0, 2),
        "d": ScoresOfLabel(0.0, 0.0, 0.0, 0),
    }
    assert scores.macro_f1 == pytest.approx((2 / 3 + 0.8) / 4)
    assert scores.confusion == {"a": {"a": 2, "b": 1}, "b": {"b": 2}, "c": {"a": 1, "d": 1}}


def test_scores_without_mistakes() -> None:
    scores = score(["a", "b"], ["a", "b"])
    assert (scores.accuracy, scores.macro_f1, scores.mistakes) == (1.0, 1.0, [])
