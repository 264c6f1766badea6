"""What a readout is to everything else, and what is right for the rows that it judges."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from torch import Tensor

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
