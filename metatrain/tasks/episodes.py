"""Data sets of texts, and seeded N-way K-shot episodes drawn from them.

A draw depends only on (seed, index), so a run can be resumed or repeated.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metatrain.errors import DataError


@dataclass(frozen=True)
class Dataset:
    """A data set of labelled texts: {label: texts}, in the order of the file.

    Every class has at least one text.
    """

    name: str
    texts: dict[str, tuple[str, ...]]

    @property
    def some_labels(self) -> str:
        """The first few labels, for messages."""
        return ", ".join([*list(self.texts)[:5], *(["…"] if len(self.texts) > 5 else [])])

    def only(self, labels: Sequence[str]) -> "Dataset":
        """Return the data set with only the classes `labels`. Raises DataError for an unknown class."""
        missing = [label for label in labels if label not in self.texts]
        if missing:
            raise DataError(f"{self.name}: no class {missing[0]!r} (has {len(self.texts)}: {self.some_labels})")
        return Dataset(self.name, {label: self.texts[label] for label in labels})


@dataclass(frozen=True)
class Episode:
    """A few-shot task that was drawn from a data set.

    `support`, `query`: pairs (text, class index), where the index points into `labels`.
    """

    dataset: str
    labels: tuple[str, ...]
    support: tuple[tuple[str, int], ...]
    query: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class EpisodeShape:
    """The shape of an episode: N ways, K shots, and the number of queries per class."""

    ways: int
    shots: int
    queries: int


class EpisodeSampler:
    """A sampler of episodes from data sets.

    It draws a data set with probability ∝ (number of its usable classes)^`temperature`, then `ways` of these classes, then
    `shots` + `queries` different texts of each. A class is usable if it has that many texts. Two options make the tasks harder:

    - near-miss, in a share `near_miss` of the episodes: one class is drawn at random. The episode's classes are then drawn from
      the classes most similar to it, twice as many as needed, so that the task is to tell similar classes apart.
    - label-merge, in a share `merge` of the episodes: each label is a union of two classes whose texts alternate, so that the
      texts of a label have no single centre. Data sets with fewer than 2·ways usable classes are not merged.

    In a share `unequal` of the episodes, the N · K examples are distributed unevenly over the classes, at least one to each, as in
    real requests.

    `similarity`: the similarity of classes, [C, C] for each data set, in the order of its classes; needed for near-miss episodes.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        seed: int,
        *,
        temperature: float = 0.5,
        near_miss: float = 0.0,
        merge: float = 0.0,
        unequal: float = 0.0,
        similarity: Sequence[NDArray[np.float32]] = (),
    ) -> None:
        if not datasets:
            raise DataError("episodes: expected at least one data set, got none")
        if near_miss and len(similarity) != len(datasets):
            raise DataError("near-miss episodes need the similarity of classes, one matrix for each data set")
        self.datasets, self.seed, self.temperature = list(datasets), seed, temperature
        self.near_miss, self.merge, self.unequal, self.similarity = near_miss, merge, unequal, similarity

    def episode(self, index: int, shape: EpisodeShape) -> Episode:
        """Draw episode number `index` of this shape. Raises DataError if every data set is too small for it."""
        rng = np.random.default_rng([self.seed, index, shape.ways, shape.shots, shape.queries])
        need = shape.shots + shape.queries
        usable = [[c for c, texts in enumerate(d.texts.values()) if len(texts) >= need] for d in self.datasets]
        assert_enough(self.datasets, shape, "episodes:")
        weights = np.array([len(u) ** self.temperature if len(u) >= shape.ways else 0.0 for u in usable])
        chosen = int(rng.choice(len(usable), p=weights / weights.sum()))
        dataset, classes = self.datasets[chosen], np.array(usable[chosen])
        merged = self.merge > 0 and rng.random() < self.merge and len(classes) >= 2 * shape.ways
        count = 2 * shape.ways if merged else shape.ways
        if self.near_miss > 0 and rng.random() < self.near_miss:
            similarity = self.similarity[chosen][rng.choice(classes)][classes]
            classes = classes[np.argsort(-similarity, kind="stable")[: 2 * count]]
        drawn = rng.choice(classes, count, replace=False).reshape(shape.ways, -1)
        support: list[tuple[str, int]] = []
        query: list[tuple[str, int]] = []
        names = list(dataset.texts)
        shots = [shape.shots] * shape.ways
        if self.unequal > 0 and shape.shots > 1 and rng.random() < self.unequal:
            most = [min(len(dataset.texts[names[c]]) for c in members) - shape.queries for members in drawn.tolist()]
            shots = unequal_shots(shape.ways * shape.shots, most, rng)
        for label, members in enumerate(drawn.tolist()):
            texts = _draw_in_turn([dataset.texts[names[c]] for c in members], shots[label] + shape.queries, rng)
            support += [(text, label) for text in texts[: shots[label]]]
            query += [(text, label) for text in texts[shots[label] :]]
        labels = tuple(" + ".join(names[c] for c in members) for members in drawn.tolist())
        return Episode(dataset.name, labels, tuple(support), tuple(query))

    def batch(self, index: int, shape: EpisodeShape, tasks: int) -> list[Episode]:
        """Draw meta-batch number `index`: T = `tasks` episodes of one shape."""
        return [self.episode(index * tasks + i, shape) for i in range(tasks)]


def unequal_shots(total: int, most: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Distribute `total` examples over classes at random, and return the number of examples per class.

    Class c gets at least one and at most `most[c]` examples. The weights of the classes are drawn uniformly from the simplex. Each
    further example goes to a class that has room, drawn by these weights.
    """
    weights = rng.dirichlet(np.ones(len(most))) + 1e-9
    shots = np.ones(len(most), dtype=int)
    for _ in range(total - len(most)):
        open_weights = np.where(shots < most, weights, 0.0)
        shots[rng.choice(len(most), p=open_weights / open_weights.sum())] += 1
    return [int(number) for number in shots]


def _draw_in_turn(classes: Sequence[Sequence[str]], need: int, rng: np.random.Generator) -> list[str]:
    """Draw `need` different texts, alternating between the classes."""
    drawn = [[texts[i] for i in rng.choice(len(texts), need, replace=False)] for texts in classes]
    return [drawn[i % len(drawn)][i // len(drawn)] for i in range(need)]


def assert_enough(datasets: Sequence[Dataset], shape: EpisodeShape, where: str) -> None:
    """Raise DataError if no data set has enough classes with enough texts for the shape.

    `where`: the beginning of the error message.
    """
    need = shape.shots + shape.queries
    best = max(sum(len(texts) >= need for texts in dataset.texts.values()) for dataset in datasets)
    if best < shape.ways:
        raise DataError(
            f"{where} {shape.ways}-way with {shape.shots} shots and {shape.queries} queries needs {shape.ways} classes of "
            f"{need} texts; at most {best} classes of one data set have that many"
        )


def largest_shapes(ways: tuple[int, int], shots: tuple[int, int], queries: int, rows: int) -> list[EpisodeShape]:
    """Return, for each number of shots, the shape with the most ways that `draw_shape` can draw."""
    most_ways = {k: min(ways[1], rows // (k + queries)) for k in range(shots[0], shots[1] + 1)}
    return [EpisodeShape(n, k, queries) for k, n in most_ways.items() if n >= ways[0]]


def draw_shape(
    seed: int, index: int, ways: tuple[int, int], shots: tuple[int, int], queries: int, rows: int | None = None
) -> EpisodeShape:
    """Draw the shape of meta-batch `index`: ways and shots are log-uniform in their closed ranges.

    The draw is repeated until a task of this shape has at most `rows` support and query rows. None: no limit.
    """
    rng = np.random.default_rng([seed, index, 7])
    while True:
        shape = EpisodeShape(_log_uniform(rng, ways), _log_uniform(rng, shots), queries)
        if rows is None or shape.ways * (shape.shots + shape.queries) <= rows:
            return shape


def _log_uniform(rng: np.random.Generator, bounds: tuple[int, int]) -> int:
    low, high = bounds
    return min(int(np.floor(np.exp(rng.uniform(np.log(low), np.log(high + 1))))), high)


def manifest_digest(episodes: Sequence[Episode]) -> str:
    """Return the sha256 of the exact contents of episodes.

    Results of two methods are comparable if they report the same digest, because both used the same episodes.
    """
    content = [[e.dataset, e.labels, e.support, e.query] for e in episodes]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def assert_class_disjoint(left: Sequence[Dataset], right: Sequence[Dataset], what: str) -> None:
    """Raise DataError if data sets of the same name in `left` and in `right` have a class in common.

    `what`: the beginning of the error message.
    """
    left_classes = {(d.name, label) for d in left for label in d.texts}
    for d in right:
        for label in d.texts:
            if (d.name, label) in left_classes:
                raise DataError(f"{what}: class {label!r} of {d.name} is on both sides")
