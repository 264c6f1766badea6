"""What a readout is to everything else, and what is right for the rows that it judges."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from metatrain.inner.config import InnerConfig
from metatrain.inner.problem import Leaves, Outer


class Targets(Protocol):
    """What is right for the M rows of T tasks."""

    @property
    def shape(self) -> tuple[int, int]:
        """(T, M)"""

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Of each task, its examples, and the groups that they are spread over: its classes, or 1. Their ratio is its shots."""

    @property
    def most_shots(self) -> list[int]:
        """Of each task, the examples of its largest group."""

    @property
    def has_partners(self) -> bool:
        """Every task has a row with another one of its group."""

    def columns(self, index: Tensor) -> Self:
        """The rows `index` [m] of every task."""

    def only(self, which: Sequence[int]) -> Self:
        """These of the tasks."""

    def real(self) -> Tensor:
        """Which rows are not padding, [T, M] bool."""

    def repeat(self, times: int) -> Self:
        """All rows again and again, [T, times · M]: targets of augmented views."""

    def parts(self, count: int, seed: int) -> list[Tensor]:
        """Deal the rows into `count` near-equal parts, the same for the same seed."""


@dataclass(frozen=True)
class RowTargets:
    """`Targets` of one value a row, without groups: `values` [T, M, …] and which rows are not padding, `mask` [T, M] bool."""

    values: Tensor
    mask: Tensor

    @classmethod
    def of(cls, tasks: Sequence[Sequence[Any]], device: torch.device) -> Self:
        """The values of T tasks of unequal sizes, padded with zeros."""
        values = [torch.tensor(own, dtype=torch.float32) for own in tasks]
        masks = [torch.ones(len(own), dtype=torch.bool) for own in tasks]
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
        beyond = [1] * (self.values.dim() - 2)
        return replace(self, values=self.values.repeat(1, times, *beyond), mask=self.mask.repeat(1, times))

    def parts(self, count: int, seed: int) -> list[Tensor]:
        order = torch.from_numpy(np.random.default_rng(seed).permutation(self.shape[1]))
        return [torch.arange(self.shape[1])] if count == 1 else list(order.tensor_split(count))


class Readout(Protocol):
    """Owns its leaves of φ, whose names are `leaves`. `moved`: inner steps move them along with the delta.

    Features are [T, M, D] float32.
    """

    @property
    def leaves(self) -> tuple[str, ...]: ...

    @property
    def moved(self) -> bool: ...

    def check(self, targets: Any, *, augmented: bool) -> None:
        """Raise AdaptationError where these support sets cannot teach anything."""

    def start(self, features: Tensor, targets: Any) -> dict[str, Tensor]:
        """The leaves that the features of the support set give, [T, …]."""

    def losses(self, phi: Leaves, features: Tensor, targets: Any, outer: Outer) -> Tensor:
        """The inner objective of each task, [T]."""

    def answering(
        self, phi: Leaves, features: Callable[[], Tensor], targets: Any, outer: Outer, step: int, *, exact: bool
    ) -> dict[str, Tensor]:
        """The leaves that φ answers with after `step` inner steps. `features` computes those of the support set under φ."""

    def judge(self, answering: Leaves, features: Tensor, query: Any, support: Any, outer: Outer) -> tuple[Tensor, Tensor]:
        """Loss and score of query rows under the leaves of `answering`, ([T], [T]). `query`, `support`: their targets."""

    def own(self, answering: Leaves, targets: Any, task: int) -> dict[str, Tensor]:
        """One task's leaves as its adapter keeps them, without padding."""

    def self_accuracy(self, features: Tensor, targets: Any) -> Tensor:
        """How well the support set predicts itself, each row without its own part in it, [T]; NaN where that means nothing."""


class MovedReadout:
    """A readout whose leaves the inner loop moves, and which answers with them as they are.

    `start`, `losses` and `judge` are missing: a kind that has no more to say than these inherits the rest.
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
    """How adapters of one kind of readout answer: many of them side by side, whatever they were learned with."""

    def check(self, labels: Sequence[str]) -> None:
        """Raise ArtifactError for labels that no adapter of this kind has."""

    def shapes(self, labels: Sequence[str], hidden: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the leaves that an adapter with these labels answers with, on features of `hidden` numbers."""

    def pack(self, leaves: Leaves, scale: float) -> dict[str, Tensor]:
        """The leaves as the bank keeps them, float32. `scale`: the initialization's inverse temperature."""

    def answer(self, runs: Sequence[tuple[Leaves, int]], features: Tensor) -> list[Any]:
        """The answers to the rows of features [B, D], each a value that JSON has.

        `runs`: packed leaves, and how many of the following rows they answer.
        """


@dataclass(frozen=True)
class ReadoutKind:
    """A kind of readout: the names of its leaves of φ, what makes one of an inner configuration for support sets of so many rows,
    and how its adapters answer."""

    leaves: tuple[str, ...]
    learner: Callable[[InnerConfig, int], Readout]
    answers: Answers
