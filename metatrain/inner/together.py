"""Adapt several support sets in one batched inner loop, each with its own number of steps.

A task leaves the batch after its last step, if its tensors can be separated from the rest (`Supervised.only`). Its result is then
complete, while the others continue. Tasks do not influence each other: each result equals that of adapting the task alone, up to
rounding.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from metatrain.errors import DeadlineExceeded
from metatrain.inner.loop import Point, deadline_exceeded, trajectory
from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Decision, Outer
from metatrain.inner.supervised import Adapted, Supervised

OnStep = Callable[[dict[int, float]], None]
"""Called after each step with {task: its support loss before the step}, for the tasks that took it."""


@dataclass(frozen=True)
class Ended:
    """The result of one task after its last step.

    `delta`: the adapted delta. `answering`: the tensors from which its readout predicts. `losses`: the support loss before each
    step. `decided`: whether it uses its optional rows, and the evidence for that (`Decision`); None without optional rows.
    """

    delta: dict[str, Tensor]
    answering: dict[str, Tensor]
    losses: tuple[float, ...]
    decided: tuple[bool, float | None] | None = None


OnEnded = Callable[[int, Ended | DeadlineExceeded], None]
"""Called with a task and its result, as soon as the result is complete."""


@dataclass(frozen=True)
class _Leaving:
    """Tasks that have taken their last step, and the batch with which they were adapted.

    `places`: {task: its position in the batch}. `tasks`, `adapted`: those of the whole batch, which may have other tasks too.
    """

    places: dict[int, int]
    tasks: Supervised
    adapted: Adapted


def adapt_each(
    tasks: Supervised,
    outer: Outer,
    optimizer: Optimizer,
    *,
    deadline: float = math.inf,
    on_step: OnStep | None = None,
    on_ended: OnEnded | None = None,
) -> list[Ended | DeadlineExceeded]:
    """Adapt T support sets in one batched inner loop, each with its own number of steps.

    Returns one entry per task: its result, or a DeadlineExceeded error if it had steps left at the deadline. `on_ended` gets the
    same entries one by one, those of tasks with few steps while others continue. `deadline`: a time of `time.monotonic`, checked
    between steps. Any other error of the inner loop, such as NonFinite, is raised for the whole batch.
    """
    batch = _Batch(tasks, outer, optimizer)
    results: dict[int, Ended | DeadlineExceeded] = {}

    def end(t: int, result: Ended | DeadlineExceeded) -> None:
        results[t] = result
        if on_ended is not None:
            on_ended(t, result)

    for leaving in batch.run(deadline, on_step):
        for t, place in leaving.places.items():
            delta = {name: leaf[place] for name, leaf in leaving.adapted.delta.items()}
            answering = tasks.readout.own(leaving.adapted.answering, leaving.tasks.support.targets, place)
            decided = None if batch.decision is None else (batch.decision.used[t], batch.decision.evidence[t])
            end(t, Ended(delta, answering, tuple(batch.losses[t]), decided))
    for t in batch.numbers:
        end(t, deadline_exceeded(len(batch.losses[t]), batch.steps[t]))
    return [results[t] for t in range(tasks.count)]


def adapted_each(tasks: Supervised, outer: Outer, optimizer: Optimizer) -> Adapted:
    """Adapt T support sets as `adapt_each` does, but without a deadline, and stack the tasks' results.

    Pass the result to `tasks.judged` to get the query loss and the score.
    """
    groups = list(_Batch(tasks, outer, optimizer).run())
    order = torch.tensor([t for leaving in groups for t in leaving.places]).argsort()

    def stacked(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        chosen = [list(leaving.places.values()) for leaving in groups]
        return {name: torch.cat([part[name][c] for part, c in zip(parts, chosen, strict=True)])[order] for name in parts[0]}

    return Adapted(stacked([g.adapted.delta for g in groups]), stacked([g.adapted.answering for g in groups]))


class _Batch:
    """The batch of unfinished tasks of one inner loop. Tasks leave it after their last step.

    `numbers`: the tasks in the batch, by their positions. `steps`: the number of steps that each of all tasks takes. `losses`: for
    each of all tasks, the support loss before each step that it has taken. `decision`: about optional rows of all tasks.
    """

    def __init__(self, tasks: Supervised, outer: Outer, optimizer: Optimizer) -> None:
        self._tasks, self._outer, self._optimizer = tasks, outer, optimizer
        self._phi: list[dict[str, Tensor]] = [{} for _ in range(tasks.count)]  # of each of all tasks, after its latest step
        self.numbers = list(range(tasks.count))
        self.steps: tuple[int, ...] = ()
        self.decision: Decision | None = None
        self._ended: dict[int, int] = {}  # the tasks without steps, which have ended already
        self.losses: list[list[float]] = [[] for _ in self.numbers]

    def run(self, deadline: float = math.inf, on_step: OnStep | None = None) -> Iterator[_Leaving]:
        """Run the inner loop, and yield the tasks that have taken their last step.

        Tasks that cannot be separated from the others are yielded at the end. After the deadline, tasks with steps left stay in
        `numbers`.
        """
        points = trajectory(self._tasks, self._outer, self._optimizer)
        while (point := next(points, None)) is not None:
            self._take(point, on_step)
            unfinished = [position for position, t in enumerate(self.numbers) if point.step < self.steps[t]]
            is_last = not unfinished or time.monotonic() > deadline
            if point.step == 0 and not is_last:
                yield from self._end_without_steps(point)
                continue
            if len(unfinished) == len(self.numbers) and not is_last:
                continue
            staying = self._tasks.only(unfinished, point.start) if unfinished else None
            if is_last or staying is not None:
                yield from self._leave(unfinished, point)
            if is_last:
                return
            if staying is not None:
                self._tasks = staying
                points = trajectory(staying, self._outer, self._optimizer, begun=point.only(unfinished))

    def _end_without_steps(self, start: Point) -> Iterator[_Leaving]:
        """Yield the tasks that take no step.

        They stay in the batch until others leave it, because the first step shares the forward pass of the start.
        """
        self._ended = {t: position for position, t in enumerate(self.numbers) if self.steps[t] == 0}
        if self._ended:
            with torch.no_grad():
                adapted = self._tasks.adapted(start.phi, self._outer, 0, exact=False, features=start.start.features)
            yield _Leaving(self._ended, self._tasks, adapted)

    def _take(self, point: Point, on_step: OnStep | None) -> None:
        """Store the tensors and losses of the tasks that have taken the step before `point`, and report it."""
        if point.step == 0:
            self.steps, self.decision = point.start.steps, point.start.decision
            self._tasks = cast(Supervised, point.start.tasks or self._tasks)
        moved = [(t, position) for position, t in enumerate(self.numbers) if point.step <= self.steps[t]]
        for t, position in moved:
            self._phi[t] = {name: leaf[position] for name, leaf in point.phi.items()}
        if point.step == 0:
            return
        step_losses = point.losses[-1].tolist()
        loss_of = {t: step_losses[position] for t, position in moved}
        for t, loss in loss_of.items():
            self.losses[t].append(loss)
        if on_step is not None:
            on_step(loss_of)

    def _leave(self, unfinished: list[int], point: Point) -> Iterator[_Leaving]:
        """Remove all tasks but those at the positions `unfinished`. Yield them, if there are any."""
        batch, numbers = self._tasks, self.numbers
        is_leaving = [position not in unfinished and t not in self._ended for position, t in enumerate(numbers)]
        finished = [position for position, leaving in enumerate(is_leaving) if leaving]
        self.numbers = [numbers[position] for position in unfinished]
        if not finished:
            return
        if unfinished and (fewer := batch.only(finished, point.start)) is not None:
            batch, numbers = fewer, [numbers[position] for position in finished]
            finished = list(range(len(numbers)))
        phi = {name: torch.stack([self._phi[t][name] for t in numbers]) for name in self._phi[numbers[0]]}
        with torch.no_grad():
            adapted = batch.adapted(phi, self._outer, point.step, exact=False)
        yield _Leaving({numbers[position]: position for position in finished}, batch, adapted)
