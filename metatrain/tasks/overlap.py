"""Keeping the texts of one side, and its classes under another name, out of the other side."""

import re
from collections import Counter
from collections.abc import Sequence

from metatrain.tasks.episodes import Dataset

_NOT_WORD = re.compile(r"\W+")


def normalized(text: str) -> str:
    """Case and punctuation folded: two texts that agree here count as the same text."""
    return _NOT_WORD.sub(" ", text.lower()).strip()


def without_overlap(
    datasets: Sequence[Dataset], other: Sequence[Dataset], *, largest_share: float = 0.05
) -> tuple[list[Dataset], list[str]]:
    """`datasets` less every text that is in `other`, less every class that shares more than `largest_share` of its texts with one
    class of `other` (it is that class under another name). Also returns a line for each class that lost something.
    """
    where: dict[str, str] = {}
    for dataset in other:
        for label, texts in dataset.texts.items():
            where |= {normalized(text): f"{dataset.name}/{label}" for text in texts}
    kept: list[Dataset] = []
    report: list[str] = []
    for dataset in datasets:
        classes: dict[str, tuple[str, ...]] = {}
        for label, texts in dataset.texts.items():
            shared = Counter(where[n] for text in texts if (n := normalized(text)) in where)
            if shared and shared.most_common(1)[0][1] > largest_share * len(texts):
                twin, count = shared.most_common(1)[0]
                report.append(f"{dataset.name}/{label}: dropped, {count} of {len(texts)} texts are in {twin}")
                continue
            if shared:
                report.append(f"{dataset.name}/{label}: {shared.total()} of {len(texts)} texts dropped")
            classes[label] = tuple(text for text in texts if normalized(text) not in where)
        if classes:
            kept.append(Dataset(dataset.name, classes))
    return kept, report
