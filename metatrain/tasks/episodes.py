"""Tasks and episodes: seeded N-way K-shot draws that depend on (seed, index) alone, so that any run can be resumed or repeated."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metatrain.errors import DataError


@dataclass(frozen=True)
class Dataset:
    """Labelled texts by class, in the order of the file. Every class has at least one text."""

    name: str
    texts: dict[str, tuple[str, ...]]

    @property
    def some_labels(self) -> str:
        """The first of its classes, for messages."""
        return ", ".join([*list(self.texts)[:5], *(["…"] if len(self.texts) > 5 else [])])

    def only(self, labels: Sequence[str]) -> "Dataset":
        """The same data set with these classes alone. Raises DataError for one that is not there."""
        missing = [label for label in labels if label not in self.texts]
        if missing:
            raise DataError(f"{self.name}: no class {missing[0]!r} (has {len(self.texts)}: {self.some_labels})")
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
    texts, then `shots` + `queries` different texts of each. Two kinds of task widen that:

    near-miss (a share `near_miss` of the episodes; needs `similarity`): the classes are drawn from among the 2·ways that are
    most like one of them, taken at random, so that the task is to tell neighbours apart;
    label-merge (a share `merge`): each label stands for two classes, whose texts alternate, so that a label has no single centre.

    `similarity`: [C, C] for each data set, in the order of its classes. Raises DataError where no data set can fill the shape.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        seed: int,
        *,
        temperature: float = 0.5,
        near_miss: float = 0.0,
        merge: float = 0.0,
        similarity: Sequence[NDArray[np.float32]] = (),
    ) -> None:
        if not datasets:
            raise DataError("no data set to draw episodes from")
        if near_miss and len(similarity) != len(datasets):
            raise DataError("near-miss episodes need the similarity of classes")
        self.datasets, self.seed, self.temperature = list(datasets), seed, temperature
        self.near_miss, self.merge, self.similarity = near_miss, merge, similarity

    def episode(self, index: int, shape: EpisodeShape) -> Episode:
        """Episode number `index` of this shape."""
        rng = np.random.default_rng([self.seed, index, shape.ways, shape.shots, shape.queries])
        need = shape.shots + shape.queries
        usable = [[c for c, texts in enumerate(d.texts.values()) if len(texts) >= need] for d in self.datasets]
        assert_enough(self.datasets, shape, "episodes:")
        weights = np.array([len(u) ** self.temperature if len(u) >= shape.ways else 0.0 for u in usable])
        which = int(rng.choice(len(usable), p=weights / weights.sum()))
        dataset, classes = self.datasets[which], np.array(usable[which])
        merged = self.merge > 0 and rng.random() < self.merge and len(classes) >= 2 * shape.ways
        count = 2 * shape.ways if merged else shape.ways
        if self.near_miss > 0 and rng.random() < self.near_miss:
            likeness = self.similarity[which][rng.choice(classes)][classes]
            classes = classes[np.argsort(-likeness, kind="stable")[: 2 * count]]
        drawn = rng.choice(classes, count, replace=False).reshape(shape.ways, -1)
        support: list[tuple[str, int]] = []
        query: list[tuple[str, int]] = []
        names = list(dataset.texts)
        for label, members in enumerate(drawn.tolist()):
            texts = _alternating([dataset.texts[names[c]] for c in members], need, rng)
            support += [(text, label) for text in texts[: shape.shots]]
            query += [(text, label) for text in texts[shape.shots :]]
        labels = tuple(" + ".join(names[c] for c in members) for members in drawn.tolist())
        return Episode(dataset.name, labels, tuple(support), tuple(query))

    def batch(self, index: int, shape: EpisodeShape, tasks: int) -> list[Episode]:
        """Meta-batch number `index`: T episodes of one shape."""
        return [self.episode(index * tasks + i, shape) for i in range(tasks)]


def _alternating(classes: Sequence[Sequence[str]], need: int, rng: np.random.Generator) -> list[str]:
    """`need` different texts, taken from the classes in turn."""
    drawn = [[texts[i] for i in rng.choice(len(texts), need, replace=False)] for texts in classes]
    return [drawn[i % len(drawn)][i // len(drawn)] for i in range(need)]


def assert_enough(datasets: Sequence[Dataset], shape: EpisodeShape, where: str) -> None:
    """Raises DataError, which begins with `where`, if no data set has as many classes with as many texts as the shape takes."""
    need = shape.shots + shape.queries
    best = max(sum(len(texts) >= need for texts in dataset.texts.values()) for dataset in datasets)
    if best < shape.ways:
        raise DataError(
            f"{where} {shape.ways}-way with {shape.shots} shots and {shape.queries} queries needs {shape.ways} classes of "
            f"{need} texts; at most {best} classes of one data set have that many"
        )


def largest_shapes(ways: tuple[int, int], shots: tuple[int, int], queries: int, rows: int) -> list[EpisodeShape]:
    """Of what `draw_shape` may draw, the one with the most ways for each number of shots."""
    most = {k: min(ways[1], rows // (k + queries)) for k in range(shots[0], shots[1] + 1)}
    return [EpisodeShape(n, k, queries) for k, n in most.items() if n >= ways[0]]


def draw_shape(
    seed: int, index: int, ways: tuple[int, int], shots: tuple[int, int], queries: int, rows: int | None = None
) -> EpisodeShape:
    """A shape for meta-batch `index`: ways and shots log-uniform in their closed ranges, drawn again while one task has more than
    `rows` rows."""
    rng = np.random.default_rng([seed, index, 7])
    while True:
        shape = EpisodeShape(_log_uniform(rng, ways), _log_uniform(rng, shots), queries)
        if rows is None or shape.ways * (shape.shots + shape.queries) <= rows:
            return shape


def _log_uniform(rng: np.random.Generator, bounds: tuple[int, int]) -> int:
    low, high = bounds
    return min(int(np.floor(np.exp(rng.uniform(np.log(low), np.log(high + 1))))), high)


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
