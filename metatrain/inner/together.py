"""Adapt several support sets in one batched inner loop, each with its own number of steps.

A task leaves the batch after its last step, if its tensors can be separated from the rest (`Supervised.only`). Tasks do not
influence each other: each result equals that of adapting the task alone, up to rounding.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metatrain.errors import DeadlineExceeded
from metatrain.inner.loop import deadline_exceeded, trajectory
from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Outer
from metatrain.inner.supervised import Adapted, Supervised

OnStep = Callable[[dict[int, float]], None]
"""Called after each step with {task: its support loss before the step}, for the tasks that took it."""


@dataclass(frozen=True)
class Ended:
    """The result of one task after its last step.

    `delta`: the adapted delta. `answering`: the tensors from which its readout predicts. `losses`: the support loss before each
    step.
    """

    delta: dict[str, Tensor]
    answering: dict[str, Tensor]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class _Results:
    """The results of all tasks, after their last step or at the deadline.

    `steps`: the number of steps that each task should take. `losses`: for each task, the support loss before each step that it
    took. A task with fewer losses than steps was interrupted by the deadline.
    """

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
    """Adapt T support sets in one batched inner loop, each with its own number of steps.

    Returns one entry per task: its result, or a DeadlineExceeded error if it had steps left at the deadline. `deadline`: a time of
    `time.monotonic`, checked between steps. Any other error of the inner loop, such as NonFinite, is raised for the whole batch.
    """
    results = _adapt_all(tasks, outer, optimizer, deadline, on_step)
    ended: list[Ended | DeadlineExceeded] = []
    for t, (steps, losses) in enumerate(zip(results.steps, results.losses, strict=True)):
        if len(losses) < steps:
            ended.append(deadline_exceeded(len(losses), steps))
            continue
        delta = {name: leaf[t] for name, leaf in results.adapted.delta.items()}
        ended.append(Ended(delta, tasks.readout.own(results.adapted.answering, tasks.support.targets, t), tuple(losses)))
    return ended


def adapted_each(tasks: Supervised, outer: Outer, optimizer: Optimizer) -> Adapted:
    """Adapt T support sets as `adapt_each` does, but without a deadline, and stack the tasks' results.

    Pass the result to `tasks.judged` to get the query loss and the score.
    """
    return _adapt_all(tasks, outer, optimizer, math.inf, None).adapted


def _adapt_all(tasks: Supervised, outer: Outer, optimizer: Optimizer, deadline: float, on_step: OnStep | None) -> _Results:
    latest_phi: list[dict[str, Tensor]] = [{} for _ in range(tasks.count)]
    losses: list[list[float]] = [[] for _ in latest_phi]
    in_pass, task_numbers = tasks, list(range(tasks.count))  # position i of the batch holds task task_numbers[i]
    points = trajectory(tasks, outer, optimizer)
    steps_of: tuple[int, ...] = ()
    while (point := next(points, None)) is not None:
        steps_of = steps_of or point.start.steps
        moved = [(t, position) for position, t in enumerate(task_numbers) if point.step <= steps_of[t]]
        for t, position in moved:
            latest_phi[t] = {name: leaf[position] for name, leaf in point.phi.items()}
        if point.step:
            step_losses = point.losses[-1].tolist()
            loss_of = {t: step_losses[position] for t, position in moved}
            for t, loss in loss_of.items():
                losses[t].append(loss)
            if on_step is not None:
                on_step(loss_of)
        steps = point.step
        unfinished = [position for position, t in enumerate(task_numbers) if steps < steps_of[t]]
        if unfinished and time.monotonic() > deadline:
            break
        if unfinished and len(unfinished) < len(task_numbers) and (fewer := in_pass.only(unfinished, point.start)) is not None:
            in_pass, task_numbers = fewer, [task_numbers[position] for position in unfinished]
            points = trajectory(in_pass, outer, optimizer, begun=point.only(unfinished))
    phi = {name: torch.stack([leaves[name] for leaves in latest_phi]) for name in latest_phi[0]}
    with torch.no_grad():
        return _Results(tasks.adapted(phi, outer, steps, exact=False), steps_of, losses)
