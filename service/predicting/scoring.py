"""How good predictions are: accuracy, precision, recall, F1, confusion. No HTTP, no torch."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class OfLabel:
    """Precision is 0 where a label was never predicted, recall where no example has it, and F1, their harmonic mean, with them."""

    precision: float
    recall: float
    f1: float
    examples: int


@dataclass(frozen=True)
class Scores:
    """`labels`: those that examples have or that were predicted. `mistakes`: which examples were labelled otherwise."""

    accuracy: float
    macro_f1: float
    labels: dict[str, OfLabel]
    confusion: dict[str, dict[str, int]]
    mistakes: list[int]


def score(true: Sequence[str], predicted: Sequence[str]) -> Scores:
    """Of at least one example."""
    pairs = list(zip(true, predicted, strict=True))
    counts, had, said = Counter(pairs), Counter(true), Counter(predicted)
    labels = {}
    for label in sorted(had | said):
        right = counts[label, label]
        labels[label] = OfLabel(
            precision=right / said[label] if said[label] else 0.0,
            recall=right / had[label] if had[label] else 0.0,
            f1=2 * right / (had[label] + said[label]),
            examples=had[label],
        )
    confusion: dict[str, dict[str, int]] = {label: {} for label in sorted(had)}
    for (label, guess), count in sorted(counts.items()):
        confusion[label][guess] = count
    mistakes = [i for i, (label, guess) in enumerate(pairs) if label != guess]
    return Scores(
        accuracy=1 - len(mistakes) / len(pairs),
        macro_f1=sum(own.f1 for own in labels.values()) / len(labels),
        labels=labels,
        confusion=confusion,
        mistakes=mistakes,
    )
