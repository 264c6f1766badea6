"""How good is an initialization? Accuracy over episodes it has never seen, paired between the systems that are compared."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from metatrain.artifact import Initialization
from metatrain.base.text import TextBase
from metatrain.episode import Episode
from metatrain.inner import adapt
from metatrain.metagrad import query_loss
from metatrain.taskbatch import Tokenized


@dataclass(frozen=True)
class Scores:
    """Accuracy of each episode, in order, and seconds of adaptation a task (T tasks in one pass)."""

    accuracy: tuple[float, ...]
    seconds_per_task: float

    @property
    def mean(self) -> float:
        return sum(self.accuracy) / len(self.accuracy)


def evaluate(
    base: TextBase,
    init: Initialization,
    episodes: Sequence[Episode],
    *,
    steps: int | None = None,
    tasks: int = 8,
    tokenized: Tokenized | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> Scores:
    """Adapt to each episode's support set (`steps` inner steps, the initialization's own number where None) and score its
    queries, `tasks` episodes in one pass. Episodes of one pass must agree in the number of rows a class."""
    lora = base.attach(init.delta)
    inner = init.inner if steps is None else init.inner.model_copy(update={"steps": steps})
    tokenized = tokenized or Tokenized(base)
    accuracy: list[float] = []
    seconds = 0.0
    for start in range(0, len(episodes), tasks):
        part = episodes[start : start + tasks]
        batch = tokenized.batch(part)
        began = time.perf_counter()
        theta, rates, scale = init.tensors(len(part), base.device)
        adapted = adapt(base, lora, theta, rates, scale, batch.support, inner)
        seconds += time.perf_counter() - began
        with torch.no_grad():
            accuracy += query_loss(base, lora, adapted, scale, batch)[1].tolist()
        progress(len(part))
    return Scores(tuple(accuracy), seconds / len(episodes))


def paired_interval(left: Sequence[float], right: Sequence[float]) -> tuple[float, float]:
    """Mean of left − right over paired episodes, and the half-width of its 95 % interval (normal approximation)."""
    differences = [a - b for a, b in zip(left, right, strict=True)]
    mean = sum(differences) / len(differences)
    variance = sum((d - mean) ** 2 for d in differences) / (len(differences) - 1)
    return mean, 1.96 * math.sqrt(variance / len(differences))
