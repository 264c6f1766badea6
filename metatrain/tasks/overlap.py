"""Remove overlap between data sets: shared texts, and shared classes under different names."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from quickstudy.one_line import printable

from metatrain.tasks.episodes import Dataset
from metatrain.tasks.normal_form import normal_form

LARGEST_SHARE = 0.05
_PLACE_CHARS, _TEXT_CHARS = 30, 24
"""The most characters of a class and of a text that a message shows."""


@dataclass(frozen=True)
class Removal:
    """The removal of texts from one class, with its reason.

    `place`: data set and label. `removed`: the number of shared texts. `of`: the number of all texts of the class. `other_place`:
    the class of other data that most of the shared texts are in. `whole_class`: True if both count as one class, so that all texts
    were removed. `pair`: a shared text, and the equal one in `other_place`.
    """

    place: str
    removed: int
    of: int
    other_place: str
    whole_class: bool
    pair: tuple[str, str] = field(repr=False)

    @property
    def message(self) -> str:
        """The removal as one line without texts, because it is published with an initialization."""
        place, other, shared = _shown(self.place), _shown(self.other_place), f"{self.removed} of {self.of} texts"
        limit = f"more than {LARGEST_SHARE:.0%}".replace("%", " %")
        if self.whole_class:
            return f"{place}: class removed: {shared} ({limit}) are in {other} too, so both count as one class"
        return f"{place}: {shared} removed: {other} or another class has them too"

    @property
    def message_with_example(self) -> str:
        """The same line with a pair of equal texts, shortened."""
        here, there = (_shown(text, _TEXT_CHARS) for text in self.pair)
        return f"{self.message}; '{here}' is '{there}' there"


def without_overlap(datasets: Sequence[Dataset], other: Sequence[Dataset]) -> tuple[list[Dataset], list[Removal]]:
    """Return `datasets` without the texts and classes of `other`, and what was removed from each class.

    Two texts are the same if their normal forms are equal (`metatrain.tasks.normal_form`). Every text that `other` has is removed.
    A class that shares more than `LARGEST_SHARE` of its texts with one class of `other` is treated as the same class under a
    different name, and removed completely. In a class of fewer than 20 texts, one shared text is enough: so few texts cannot show
    that the classes differ, and a class less in training costs less than a test on a class that was trained on.
    """
    others: dict[str, dict[str, str]] = {}  # {normal form: {class: text}}, because several classes may have the same text
    for dataset in other:
        for label, texts in dataset.texts.items():
            for text in texts:
                others.setdefault(normal_form(text), {})[f"{dataset.name}/{label}"] = text
    kept: list[Dataset] = []
    removals: list[Removal] = []
    for dataset in datasets:
        classes: dict[str, tuple[str, ...]] = {}
        for label, texts in dataset.texts.items():
            found = [(text, others[form]) for text in texts if (form := normal_form(text)) in others]
            if not found:
                classes[label] = texts
                continue
            counts = Counter(place for _, places in found for place in places)
            other_place = max(sorted(counts), key=counts.__getitem__)  # sorted, so that the order of the data does not matter
            count = counts[other_place]
            pair = next((text, places[other_place]) for text, places in found if other_place in places)
            whole_class = count > LARGEST_SHARE * len(texts)
            removed = count if whole_class else len(found)
            removals.append(Removal(f"{dataset.name}/{label}", removed, len(texts), other_place, whole_class, pair))
            shared = {text for text, _ in found}
            left = tuple(text for text in texts if text not in shared)
            if left and not whole_class:
                classes[label] = left
        if classes:
            kept.append(Dataset(dataset.name, classes))
    return kept, removals


def _shown(text: str, most: int = _PLACE_CHARS) -> str:
    """Return a text in at most `most` characters, none of which could control a terminal."""
    return printable(text if len(text) <= most else f"{text[: most - 1]}…")
