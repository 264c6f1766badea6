"""Evaluate initializations: their accuracy on episodes, and paired differences on the same episodes."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from metatrain.artifacts.initialization import Initialization
from metatrain.errors import DataError
from metatrain.inner.encoded import Encoded
from metatrain.inner.loop import trajectory
from metatrain.inner.support import Query, Support
from metatrain.inner.together import adapted_each
from metatrain.models.base import Base
from metatrain.readouts.classes import ClassTargets
from metatrain.readouts.heads import linear_from_prototypes
from metatrain.tasks.episodes import Episode


@dataclass(frozen=True)
class Scores:
    """The result of an evaluation.

    `accuracy`: one number for each episode, in order. `seconds_per_task`: the time of adaptation divided by the number of episodes.
    Several episodes are adapted in one batch, so it is not the latency of a single adaptation.
    """

    accuracy: tuple[float, ...]
    seconds_per_task: float

    @property
    def mean(self) -> float:
        return sum(self.accuracy) / len(self.accuracy)


def evaluate(
    base: Base,
    init: Initialization,
    episodes: Sequence[Episode],
    *,
    steps: int | None = None,
    together: int = 8,
    encoded: Encoded | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> Scores:
    """Adapt to each episode's support set and score its queries, with `together` episodes in one batch.

    `steps`: the number of inner steps; None for the initialization's number for each support set. `encoded`: a cache of encoded
    examples; None for a new one. `progress` is called after each batch with the number of its episodes.

    Raises ValueError if support sets of one batch are so large that they are split into parts, and differ in their numbers of rows.
    """
    if steps is not None:
        marks = (steps,)
        return evaluate_steps(base, init, episodes, marks, together=together, encoded=encoded, progress=progress)[steps]
    accuracy: list[float] = []
    seconds = 0.0
    for support, query in _batches(base, init, episodes, together, encoded):
        outer, began = init.outer(base.device), time.perf_counter()
        tasks = init.tasks(base, support, query)
        adapted = adapted_each(tasks, outer, init.inner.update)
        seconds += time.perf_counter() - began
        with torch.no_grad():
            accuracy += tasks.judged(adapted, outer)[1].tolist()
        progress(tasks.count)
    return Scores(tuple(accuracy), seconds / len(episodes))


def evaluate_steps(
    base: Base,
    init: Initialization,
    episodes: Sequence[Episode],
    marks: Sequence[int],
    *,
    together: int = 8,
    encoded: Encoded | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> dict[int, Scores]:
    """Evaluate after each number of inner steps in `marks`; return {number of steps: scores}.

    One run of the inner loop serves all of `marks`. The other arguments are those of `evaluate`.
    """
    accuracy: dict[int, list[float]] = {}
    seconds: dict[int, float] = {}
    for support, query in _batches(base, init, episodes, together, encoded):
        outer, spent, began = init.outer(base.device), 0.0, time.perf_counter()
        tasks = init.tasks(base, support, query, steps=max(marks))
        for point in trajectory(tasks, outer, init.inner.update):
            if point.step not in marks:
                continue
            spent += time.perf_counter() - began
            began = time.perf_counter()
            with torch.no_grad():
                adapted = tasks.adapted(point.phi, outer, point.step, exact=False)
                readout_seconds = time.perf_counter() - began  # added to this mark only, not to the later ones
                accuracy.setdefault(point.step, []).extend(tasks.judged(adapted, outer)[1].tolist())
            seconds[point.step] = seconds.get(point.step, 0.0) + spent + readout_seconds
            began = time.perf_counter()
        progress(tasks.count)
    return {mark: Scores(tuple(scores), seconds[mark] / len(episodes)) for mark, scores in accuracy.items()}


def _batches(
    base: Base, init: Initialization, episodes: Sequence[Episode], together: int, encoded: Encoded | None
) -> Iterator[tuple[Support[ClassTargets], Query[ClassTargets]]]:
    """Yield the support and query sets of the episodes in batches of `together` episodes."""
    encoded = encoded or Encoded(base)
    for start in range(0, len(episodes), together):
        yield encoded.batch(episodes[start : start + together])


@torch.no_grad()
def own_steps(
    base: Base, init: Initialization, episodes: Sequence[Episode], *, together: int = 8, encoded: Encoded | None = None
) -> tuple[int, ...]:
    """Return, for each episode, the number of inner steps that `evaluate` takes with `steps=None`."""
    outer, encoded = init.outer(base.device), encoded or Encoded(base)
    steps: list[int] = []
    for start in range(0, len(episodes), together):
        support = encoded.support([episode.support for episode in episodes[start : start + together]])
        steps += init.tasks(base, support).start(outer).steps
    return tuple(steps)


@torch.no_grad()
def evaluate_prototypes(
    base: Base, init: Initialization, episodes: Sequence[Episode], *, encoded: Encoded | None = None
) -> tuple[float, ...]:
    """Return the accuracy of the prototype classifier, without inner steps, on each episode.

    Up to rounding, the accuracy equals that of `evaluate` with steps=0. The features of a text are computed only once, even if it
    appears in many episodes, which saves time.
    """
    kind, outer, encoded = base.attach(init.delta), init.outer(base.device), encoded or Encoded(base)
    assert outer.scale is not None
    unique = sorted({text for e in episodes for text, _ in (*e.support, *e.query)})
    index = {text: number for number, text in enumerate(unique)}
    features = encoded.features(unique, kind, outer.theta, outer.base)
    accuracy = []
    for episode in episodes:
        (support, support_labels), (query, query_labels) = (
            (features[[index[text] for text, _ in pairs]], torch.tensor([c for _, c in pairs], device=base.device))
            for pairs in (episode.support, episode.query)
        )
        head = linear_from_prototypes(support.unsqueeze(0), support_labels.unsqueeze(0), len(episode.labels))
        predicted = head.logits(query.unsqueeze(0), outer.scale)[0].argmax(-1)
        accuracy.append(float((predicted == query_labels).float().mean()))
    return tuple(accuracy)


def paired_interval(left: Sequence[float], right: Sequence[float]) -> tuple[float, float]:
    """Return the mean of left − right over paired episodes, and half the width of its 95 % interval.

    The interval is the 95 % confidence interval of the mean, in the normal approximation. Raises DataError for fewer than two
    pairs, from which no interval follows.
    """
    if len(left) < 2:
        raise DataError(f"expected at least 2 paired episodes for an interval, got {len(left)}")
    differences = [a - b for a, b in zip(left, right, strict=True)]
    mean = sum(differences) / len(differences)
    variance = sum((d - mean) ** 2 for d in differences) / (len(differences) - 1)
    return mean, 1.96 * math.sqrt(variance / len(differences))
