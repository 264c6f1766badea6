"""Remove overlap between data sets: shared texts, and shared classes under different names."""

import re
from collections import Counter
from collections.abc import Sequence

from metatrain.tasks.episodes import Dataset

_NOT_WORD = re.compile(r"\W+")


def normalized(text: str) -> str:
    """Return a text in lower case without punctuation. Texts with equal results are treated as the same."""
    return _NOT_WORD.sub(" ", text.lower()).strip()


def without_overlap(
    datasets: Sequence[Dataset], other: Sequence[Dataset], *, largest_share: float = 0.05
) -> tuple[list[Dataset], list[str]]:
    """Return `datasets` without the texts and classes of `other`, and a message for each changed class.

    Every text that `other` has is dropped. A class that shares more than `largest_share` of its texts with one class of `other` is
    treated as the same class under a different name, and dropped completely.
    """
    other_class: dict[str, str] = {}
    for dataset in other:
        for label, texts in dataset.texts.items():
            other_class |= {normalized(text): f"{dataset.name}/{label}" for text in texts}
    kept: list[Dataset] = []
    report: list[str] = []
    for dataset in datasets:
        classes: dict[str, tuple[str, ...]] = {}
        for label, texts in dataset.texts.items():
            shared = Counter(other_class[n] for text in texts if (n := normalized(text)) in other_class)
            if shared and shared.most_common(1)[0][1] > largest_share * len(texts):
                same_class, count = shared.most_common(1)[0]
                report.append(f"{dataset.name}/{label}: dropped, {count} of {len(texts)} texts are in {same_class}")
                continue
            if shared:
                report.append(f"{dataset.name}/{label}: {shared.total()} of {len(texts)} texts dropped")
            classes[label] = tuple(text for text in texts if normalized(text) not in other_class)
        if classes:
            kept.append(Dataset(dataset.name, classes))
    return kept, report
