"""Protocols for readouts: `Readout` to adapt, `Targets` for the correct answers, `Answers` to serve."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from metatrain.inner.config import InnerConfig
from metatrain.inner.problem import Decision, Leaves, Outer


class Targets(Protocol):
    """The correct answers for the M rows of each of T tasks.

    Every row of a task belongs to a group. In classification each class is a group; without classes, all rows are one group.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """The pair (T, M)."""

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """A pair for each task: its numbers of examples and of groups. Shots are examples per group."""

    @property
    def most_shots(self) -> list[int]:
        """The number of examples in the largest group of each task."""

    @property
    def has_partners(self) -> bool:
        """True if every task has a group with at least two rows."""

    @property
    def is_undecided(self) -> bool:
        """True if some rows are optional.

        The readout then decides from the features which tasks use them (`Readout.decide`).
        """

    def without(self, rows: Tensor) -> Self:
        """Return the targets with the rows in the mask [T, M] as padding. No row of the result is optional."""

    def columns(self, index: Tensor) -> Self:
        """Return the targets with only the rows at positions `index` [m] of each task."""

    def only(self, which: Sequence[int]) -> Self:
        """Return the targets of only the tasks at the indices `which`."""

    def real(self) -> Tensor:
        """Return a mask [T, M] bool: True for rows that are not padding."""

    def repeat(self, times: int) -> Self:
        """Repeat the M rows of each task `times` times, for augmented views: [T, times · M]."""

    def parts(self, count: int, seed: int) -> list[Tensor]:
        """Split the rows, by `seed`, into `count` parts of nearly equal size; return row indices of each."""


@dataclass(frozen=True)
class RowTargets:
    """Targets with a value for each row and a single group, for readouts without classes.

    `values`: [T, M, …]. `mask`: [T, M] bool, True for rows that are not padding.
    """

    values: Tensor
    mask: Tensor

    @classmethod
    def of(cls, tasks: Sequence[Sequence[Any]], device: torch.device) -> Self:
        """Create targets from the values of each task's rows, padded with zeros to the largest task."""
        values = [torch.tensor(task, dtype=torch.float32) for task in tasks]
        masks = [torch.ones(len(task), dtype=torch.bool) for task in tasks]
        return cls(*(nn.utils.rnn.pad_sequence(part, batch_first=True).to(device) for part in (values, masks)))

    @property
    def shape(self) -> tuple[int, int]:
        tasks, rows = self.mask.shape
        return tasks, rows

    @property
    def sizes(self) -> list[tuple[int, int]]:
        return [(int(rows), 1) for rows in self.mask.sum(1)]

    @property
    def most_shots(self) -> list[int]:
        return [rows for rows, _ in self.sizes]

    @property
    def has_partners(self) -> bool:
        return bool((self.mask.sum(1) > 1).all())

    @property
    def is_undecided(self) -> bool:
        return False

    def without(self, rows: Tensor) -> Self:
        return replace(self, mask=self.mask & ~rows)

    def columns(self, index: Tensor) -> Self:
        index = index.to(self.mask.device)
        return replace(self, values=self.values[:, index], mask=self.mask[:, index])

    def only(self, which: Sequence[int]) -> Self:
        return replace(self, values=self.values[list(which)], mask=self.mask[list(which)])

    def real(self) -> Tensor:
        return self.mask

    def repeat(self, times: int) -> Self:
        trailing = [1] * (self.values.dim() - 2)
        return replace(self, values=self.values.repeat(1, times, *trailing), mask=self.mask.repeat(1, times))

    def parts(self, count: int, seed: int) -> list[Tensor]:
        order = torch.from_numpy(np.random.default_rng(seed).permutation(self.shape[1]))
        return [torch.arange(self.shape[1])] if count == 1 else list(order.tensor_split(count))


class Readout(Protocol):
    """The step from features to losses and predictions during adaptation, such as a classification head.

    φ (`phi`) contains the tensors that the inner loop adapts. `leaves`: the names of the readout's tensors in φ. `moved`: True if
    inner steps move these tensors together with the delta. Features are [T, M, D] float32.
    """

    @property
    def leaves(self) -> tuple[str, ...]: ...

    @property
    def moved(self) -> bool: ...

    def check(self, targets: Any, *, augmented: bool) -> None:
        """Raise AdaptationError if the inner objective cannot learn anything from these support sets.

        `augmented`: True if the support sets have augmented views.
        """

    def decide(self, features: Tensor, targets: Any, scale: Tensor) -> tuple[Decision, Any]:
        """Decide which tasks use their optional rows.

        Returns the decision, and the targets without the rows that are not used. Called only if `targets.is_undecided`.
        `features`: those of the support rows under θ, detached. `scale`: s.
        """

    def start(self, features: Tensor, targets: Any) -> dict[str, Tensor]:
        """Return the readout's initial tensors, [T, …], computed from the features of the support set."""

    def losses(self, phi: Leaves, features: Tensor, targets: Any, outer: Outer) -> Tensor:
        """Return the inner objective of each task, [T], for the features of support rows."""

    def answering(
        self, phi: Leaves, features: Callable[[], Tensor], targets: Any, outer: Outer, step: int, *, exact: bool
    ) -> dict[str, Tensor]:
        """Return the tensors from which the readout predicts after `step` inner steps.

        `features`: a function that computes the features of the support set with the adapted delta. `exact`: differentiate any
        gradient steps that the readout takes here; otherwise their gradients are constants.
        """

    def judge(self, answering: Leaves, features: Tensor, query: Any, support: Any, outer: Outer) -> tuple[Tensor, Tensor]:
        """Return the loss [T] and the score [T] of the readout's predictions for query rows.

        `answering`: the result of the method `answering`. `features`: those of the query rows. `query`, `support`: the targets of
        the two sets.
        """

    def own(self, answering: Leaves, targets: Any, task: int) -> dict[str, Tensor]:
        """Return the tensors of task number `task` as its adapter stores them, without padding."""

    def self_accuracy(self, features: Tensor, targets: Any) -> Tensor:
        """Return the leave-one-out accuracy on the support set, [T]; NaN if it is undefined."""


class MovedReadout:
    """The base class of readouts that predict directly from the tensors that the inner loop has moved.

    A subclass must define `leaves`, `start`, `losses` and `judge`.
    """

    leaves: tuple[str, ...]
    moved = True

    def __init__(self, config: InnerConfig, rows: int) -> None:
        pass

    def check(self, targets: Any, *, augmented: bool) -> None:
        pass

    def decide(self, features: Tensor, targets: Any, scale: Tensor) -> tuple[Decision, Any]:
        raise NotImplementedError("this readout has no optional rows")

    def answering(
        self, phi: Leaves, features: Callable[[], Tensor], targets: Any, outer: Outer, step: int, *, exact: bool
    ) -> dict[str, Tensor]:
        return {name: phi[name] for name in self.leaves}

    def own(self, answering: Leaves, targets: Any, task: int) -> dict[str, Tensor]:
        return {name: answering[name][task].detach() for name in self.leaves}

    def self_accuracy(self, features: Tensor, targets: Any) -> Tensor:
        return torch.full((len(features),), torch.nan)


class Answers(Protocol):
    """The serving part of a readout kind: predict with several adapters in one batch.

    It is independent of the inner loop that produced the adapters.
    """

    def check(self, labels: Sequence[str]) -> None:
        """Raise ArtifactError if an adapter of this kind cannot have these labels."""

    def shapes(self, labels: Sequence[str], hidden: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the readout's tensors in an adapter with these labels.

        `hidden`: D, the width of the features.
        """

    def pack(self, leaves: Leaves, scale: float) -> dict[str, Tensor]:
        """Convert an adapter's readout tensors to the float32 tensors that `answer` reads.

        `scale`: s, the inverse temperature.
        """

    def answer(self, runs: Sequence[tuple[Leaves, int]], features: Tensor) -> list[Any]:
        """Return the prediction, a JSON value, for each row of features [B, D].

        `runs`: one pair for each run of consecutive rows with the same adapter: the adapter's tensors from `pack`, and the number
        of rows.
        """


@dataclass(frozen=True)
class ReadoutKind:
    """One kind of readout, as the registry stores it.

    `leaves`: the names of its tensors in φ. `learner`: a function that creates the `Readout` from the inner configuration and the
    number of support rows. `answers`: predicts with adapters of this kind.
    """

    leaves: tuple[str, ...]
    learner: Callable[[InnerConfig, int], Readout]
    answers: Answers
