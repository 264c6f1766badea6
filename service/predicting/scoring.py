"""Scores of predicted labels: accuracy, precision, recall, F1 and confusion. HTTP- and torch-free."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ScoresOfLabel:
    """The precision, recall and F1 of one label, and the number of examples that have it.

    Precision is 0 if the label was never predicted. Recall is 0 if no example has the label. F1 is the harmonic mean of the two,
    or 0 if one of them is 0.
    """

    precision: float
    recall: float
    f1: float
    examples: int


@dataclass(frozen=True)
class Scores:
    """The scores of a set of predictions.

    `labels` includes each label that is the true or the predicted label of some example. `macro_f1` is the mean F1 of these labels.
    `confusion[true][predicted]` is a number of examples; zeros are left out. `mistakes` has the positions of wrongly predicted
    examples.
    """

    accuracy: float
    macro_f1: float
    labels: dict[str, ScoresOfLabel]
    confusion: dict[str, dict[str, int]]
    mistakes: list[int]


def score(true: Sequence[str], predicted: Sequence[str]) -> Scores:
    """Return the scores of predicted labels. Needs at least one example."""
    pairs = list(zip(true, predicted, strict=True))
    counts, true_counts, predicted_counts = Counter(pairs), Counter(true), Counter(predicted)
    labels = {}
    for label in sorted(true_counts | predicted_counts):
        right, of_label, as_label = counts[label, label], true_counts[label], predicted_counts[label]
        labels[label] = ScoresOfLabel(
            precision=right / as_label if as_label else 0.0,
            recall=right / of_label if of_label else 0.0,
            f1=2 * right / (of_label + as_label),
            examples=of_label,
        )
    confusion: dict[str, dict[str, int]] = {label: {} for label in sorted(true_counts)}
    for (label, guess), count in sorted(counts.items()):
        confusion[label][guess] = count
    mistakes = [i for i, (label, guess) in enumerate(pairs) if label != guess]
    return Scores(
        accuracy=1 - len(mistakes) / len(pairs),
        macro_f1=sum(each.f1 for each in labels.values()) / len(labels),
        labels=labels,
        confusion=confusion,
        mistakes=mistakes,
    )
