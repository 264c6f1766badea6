"""The interface of a readout, of its targets and of its answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from metatrain.inner.config import InnerConfig
from metatrain.inner.problem import Leaves, Outer


class Targets(Protocol):
    """The correct answers for the M rows of T tasks. Rows are in groups: classes, or one group for all."""

    @property
    def shape(self) -> tuple[int, int]:
        """The pair (T, M)."""

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The number of examples and of groups of each task. Examples divided by groups are its shots."""

    @property
    def most_shots(self) -> list[int]:
        """The number of examples in the largest group of each task."""

    @property
    def has_partners(self) -> bool:
        """True if every task has at least two rows of one group."""

    def columns(self, index: Tensor) -> Self:
        """Return the targets of rows `index` [m] of every task."""

    def only(self, which: Sequence[int]) -> Self:
        """Return the targets of tasks `which`."""

    def real(self) -> Tensor:
        """Return which rows are not padding, [T, M] bool."""

    def repeat(self, times: int) -> Self:
        """Return the targets of `times` views of every row, [T, times · M]."""

    def parts(self, count: int, seed: int) -> list[Tensor]:
        """Split the rows into `count` parts of nearly equal size, which depend only on the seed."""


@dataclass(frozen=True)
class RowTargets:
    """Targets with one value per row and one group: `values` [T, M, …].

    `mask`: [T, M] bool, True for rows that are not padding.
    """

    values: Tensor
    mask: Tensor

    @classmethod
    def of(cls, tasks: Sequence[Sequence[Any]], device: torch.device) -> Self:
        """Return the targets of T tasks with different numbers of rows, padded with zeros."""
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
    """The part of an inner loop between the features and the loss.

    `leaves`: the names of its leaves of φ. `moved`: True if inner steps move these leaves together with the delta. Features are
    [T, M, D] float32.
    """

    @property
    def leaves(self) -> tuple[str, ...]: ...

    @property
    def moved(self) -> bool: ...

    def check(self, targets: Any, *, augmented: bool) -> None:
        """Raise AdaptationError if the inner objective cannot learn anything from these support sets.

        `augmented`: True if the support sets have augmented views.
        """

    def start(self, features: Tensor, targets: Any) -> dict[str, Tensor]:
        """Return the initial leaves for the features of the support set, [T, …]."""

    def losses(self, phi: Leaves, features: Tensor, targets: Any, outer: Outer) -> Tensor:
        """Return the inner objective of each task, [T]."""

    def answering(
        self, phi: Leaves, features: Callable[[], Tensor], targets: Any, outer: Outer, step: int, *, exact: bool
    ) -> dict[str, Tensor]:
        """Return the leaves that answer after `step` inner steps.

        `features` computes the features of the support set under φ. `exact`: whether the result is differentiated exactly.
        """

    def judge(self, answering: Leaves, features: Tensor, query: Any, support: Any, outer: Outer) -> tuple[Tensor, Tensor]:
        """Return the loss and the score of query rows for the leaves of `answering`, ([T], [T]).

        `query`, `support`: the targets of the two sets.
        """

    def own(self, answering: Leaves, targets: Any, task: int) -> dict[str, Tensor]:
        """Return the leaves of one task as its adapter stores them, without padding."""

    def self_accuracy(self, features: Tensor, targets: Any) -> Tensor:
        """Return the leave-one-out accuracy on the support set, [T]; NaN if it is undefined."""


class MovedReadout:
    """A base class for readouts that answer with the leaves that the inner loop has moved.

    A subclass has to define `leaves`, `start`, `losses` and `judge`.
    """

    leaves: tuple[str, ...]
    moved = True

    def __init__(self, config: InnerConfig, rows: int) -> None:
        pass

    def check(self, targets: Any, *, augmented: bool) -> None:
        pass

    def answering(
        self, phi: Leaves, features: Callable[[], Tensor], targets: Any, outer: Outer, step: int, *, exact: bool
    ) -> dict[str, Tensor]:
        return {name: phi[name] for name in self.leaves}

    def own(self, answering: Leaves, targets: Any, task: int) -> dict[str, Tensor]:
        return {name: answering[name][task].detach() for name in self.leaves}

    def self_accuracy(self, features: Tensor, targets: Any) -> Tensor:
        return torch.full((len(features),), torch.nan)


class Answers(Protocol):
    """The prediction with adapters of one kind of readout, several in one batch.

    It is independent of the inner loop that produced the adapters.
    """

    def check(self, labels: Sequence[str]) -> None:
        """Raise ArtifactError if an adapter of this kind cannot have these labels."""

    def shapes(self, labels: Sequence[str], hidden: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the answering leaves of an adapter with these labels. `hidden`: D."""

    def pack(self, leaves: Leaves, scale: float) -> dict[str, Tensor]:
        """Return the leaves as the bank stores them, float32. `scale`: s, the inverse temperature."""

    def answer(self, runs: Sequence[tuple[Leaves, int]], features: Tensor) -> list[Any]:
        """Return one JSON value for each row of features [B, D].

        `runs`: packed leaves, each with the number of consecutive rows that they answer.
        """


@dataclass(frozen=True)
class ReadoutKind:
    """One kind of readout.

    `leaves`: the names of its leaves of φ. `learner`: makes the `Readout` of (inner configuration, number of support rows).
    `answers`: the prediction with its adapters.
    """

    leaves: tuple[str, ...]
    learner: Callable[[InnerConfig, int], Readout]
    answers: Answers
