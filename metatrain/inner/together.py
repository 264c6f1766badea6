"""Several support sets adapted in one pass, each to its own number of steps, after which it leaves the pass.

No task feels its neighbours: each ends as alone, up to rounding.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metatrain.errors import DeadlineExceeded
from metatrain.inner.loop import late, trajectory
from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Outer
from metatrain.inner.supervised import Adapted, Supervised

OnStep = Callable[[dict[int, float]], None]
"""Called with {task: its support loss before the step} for those that took a step."""


@dataclass(frozen=True)
class Ended:
    """One task after its own steps: its delta, the leaves that its readout answers with, and the support loss before each step."""

    delta: dict[str, Tensor]
    answering: dict[str, Tensor]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class _Walk:
    """What each task answers with after its own steps, or those that it took before the deadline; its steps, and its loss before
    each one taken."""

    adapted: Adapted
    steps: tuple[int, ...]
    losses: list[list[float]]


def adapt_each(
    tasks: Supervised,
    outer: Outer,
    optimizer: Optimizer,
    *,
    deadline: float = math.inf,
    on_step: OnStep | None = None,
) -> list[Ended | DeadlineExceeded]:
    """Run the inner loop of T support sets in one pass, each to its own number of steps.

    `deadline` is on `time.monotonic`, looked at between steps: a task that has not taken all of its own by then has exceeded it.
    Raises what the inner loop does, for all of them.
    """
    walk = _walk(tasks, outer, optimizer, deadline, on_step)
    ended: list[Ended | DeadlineExceeded] = []
    for t, (own, losses) in enumerate(zip(walk.steps, walk.losses, strict=True)):
        if len(losses) < own:
            ended.append(late(len(losses), own))
            continue
        delta = {name: leaf[t] for name, leaf in walk.adapted.delta.items()}
        ended.append(Ended(delta, tasks.readout.own(walk.adapted.answering, tasks.support.targets, t), tuple(losses)))
    return ended


def adapted_each(tasks: Supervised, outer: Outer, optimizer: Optimizer) -> Adapted:
    """Do the same as `adapt_each`, to be asked with `tasks.judged`."""
    return _walk(tasks, outer, optimizer, math.inf, None).adapted


def _walk(tasks: Supervised, outer: Outer, optimizer: Optimizer, deadline: float, on_step: OnStep | None) -> _Walk:
    reached: list[dict[str, Tensor]] = [{} for _ in range(tasks.count)]
    losses: list[list[float]] = [[] for _ in reached]
    part, going = tasks, list(range(tasks.count))
    points = trajectory(tasks, outer, optimizer)
    own_steps: tuple[int, ...] = ()
    while (point := next(points, None)) is not None:
        own_steps = own_steps or point.start.steps
        took = [(t, place) for place, t in enumerate(going) if point.step <= own_steps[t]]
        for t, place in took:
            reached[t] = {name: leaf[place] for name, leaf in point.phi.items()}
        if point.step:
            found = point.losses[-1].tolist()
            before = {t: found[place] for t, place in took}
            for t, loss in before.items():
                losses[t].append(loss)
            if on_step is not None:
                on_step(before)
        steps = point.step
        left = [place for place, t in enumerate(going) if steps < own_steps[t]]
        if left and time.monotonic() > deadline:
            break
        if left and len(left) < len(going) and (fewer := part.only(left, point.start)) is not None:
            part, going = fewer, [going[place] for place in left]
            points = trajectory(part, outer, optimizer, begun=point.only(left))
    phi = {name: torch.stack([own[name] for own in reached]) for name in reached[0]}
    with torch.no_grad():
        return _Walk(tasks.adapted(phi, outer, steps, exact=False), own_steps, losses)
