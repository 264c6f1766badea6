"""Tasks and episodes: seeded N-way K-shot draws that depend on (seed, index) alone, so that any run can be resumed or repeated."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metatrain.errors import DataError


@dataclass(frozen=True)
class Dataset:
    """Labelled texts by class, in the order of the file. Every class has at least one text."""

    name: str
    texts: dict[str, tuple[str, ...]]

    def only(self, labels: Sequence[str]) -> "Dataset":
        """The same data set with these classes alone. Raises DataError for one that is not there."""
        missing = [label for label in labels if label not in self.texts]
        if missing:
            raise DataError(f"{self.name}: no class {missing[0]!r} (has {len(self.texts)}: {', '.join(list(self.texts)[:5])}, …)")
        return Dataset(self.name, {label: self.texts[label] for label in labels})


@dataclass(frozen=True)
class Episode:
    """One draw: `support` and `query` are (text, class index) pairs, class indices point into `labels`."""

    dataset: str
    labels: tuple[str, ...]
    support: tuple[tuple[str, int], ...]
    query: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class EpisodeShape:
    """N ways, K shots, queries a class."""

    ways: int
    shots: int
    queries: int


class EpisodeSampler:
    """Draws episodes from data sets.

    A data set is drawn with probability ∝ (number of its classes)^`temperature`, then `ways` of its classes that have enough
    texts, then `shots` + `queries` different texts of each. Raises DataError where no data set can fill the shape.
    """

    def __init__(self, datasets: Sequence[Dataset], seed: int, *, temperature: float = 0.5) -> None:
        if not datasets:
            raise DataError("no data set to draw episodes from")
        self.datasets, self.seed, self.temperature = list(datasets), seed, temperature

    def episode(self, index: int, shape: EpisodeShape) -> Episode:
        """Episode number `index` of this shape."""
        rng = np.random.default_rng([self.seed, index, shape.ways, shape.shots, shape.queries])
        need = shape.shots + shape.queries
        usable = [{label: texts for label, texts in d.texts.items() if len(texts) >= need} for d in self.datasets]
        weights = np.array([len(u) ** self.temperature if len(u) >= shape.ways else 0.0 for u in usable])
        if not weights.any():
            best = max(len(u) for u in usable)
            raise DataError(
                f"episodes: {shape.ways}-way with {shape.shots} shots and {shape.queries} queries needs {shape.ways} classes of "
                f"{need} texts; at most {best} classes of one data set have that many"
            )
        which = int(rng.choice(len(usable), p=weights / weights.sum()))
        labels = [list(usable[which])[i] for i in rng.choice(len(usable[which]), shape.ways, replace=False)]
        support: list[tuple[str, int]] = []
        query: list[tuple[str, int]] = []
        for c, label in enumerate(labels):
            texts = usable[which][label]
            drawn = [texts[i] for i in rng.choice(len(texts), need, replace=False)]
            support += [(text, c) for text in drawn[: shape.shots]]
            query += [(text, c) for text in drawn[shape.shots :]]
        return Episode(self.datasets[which].name, tuple(labels), tuple(support), tuple(query))

    def batch(self, index: int, shape: EpisodeShape, tasks: int) -> list[Episode]:
        """Meta-batch number `index`: T episodes of one shape."""
        return [self.episode(index * tasks + i, shape) for i in range(tasks)]


def draw_shape(seed: int, index: int, ways: tuple[int, int], shots: tuple[int, int], queries: int) -> EpisodeShape:
    """A shape for meta-batch `index`: ways log-uniform and shots uniform in their closed ranges."""
    rng = np.random.default_rng([seed, index, 7])
    low, high = ways
    drawn_ways = int(np.floor(np.exp(rng.uniform(np.log(low), np.log(high + 1)))))
    return EpisodeShape(min(drawn_ways, high), int(rng.integers(shots[0], shots[1] + 1)), queries)


def manifest_digest(episodes: Sequence[Episode]) -> str:
    """sha256 over the episodes' exact contents: two methods that name the same digest met the same episodes."""
    content = [[e.dataset, e.labels, e.support, e.query] for e in episodes]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def assert_class_disjoint(left: Sequence[Dataset], right: Sequence[Dataset], what: str) -> None:
    """Raises DataError, naming a class, where a data set of the same name has it on both sides."""
    classes = {(d.name, label) for d in left for label in d.texts}
    for d in right:
        for label in d.texts:
            if (d.name, label) in classes:
                raise DataError(f"{what}: class {label!r} of {d.name} is on both sides")
