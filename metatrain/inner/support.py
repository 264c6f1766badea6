"""Support sets as rows: what the inner loop goes through, step by step."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from metatrain.deltas import DeltaKind
from metatrain.models.backbone import Batch
from metatrain.models.base import Base
from metatrain.models.inputs.augment import Augmentation
from metatrain.readouts.readout import Targets

T = TypeVar("T", bound=Targets)
_CHUNK_ROWS = 128  # rows of one forward pass that keeps no graph; bounds memory, changes no result beyond rounding


@dataclass(frozen=True)
class Support(Generic[T]):
    """T support sets of M rows each: `rows` of T·M examples, task-major, None for padding, and what is right for them."""

    rows: Sequence[Any]
    targets: T

    def columns(self, index: torch.Tensor) -> "Support[T]":
        """The rows `index` [m] of every task."""
        tasks, width = self.targets.shape
        return Support([self.rows[t * width + i] for t in range(tasks) for i in index.tolist()], self.targets.columns(index))

    def only(self, which: Sequence[int]) -> "Support[T]":
        """These of the tasks, without the rows that are padding in all of them."""
        width = self.targets.shape[1]
        kept = Support([row for t in which for row in self.rows[t * width : (t + 1) * width]], self.targets.only(which))
        return kept.columns(kept.targets.real().any(0).nonzero()[:, 0])


@dataclass(frozen=True)
class Query(Generic[T]):
    """T query sets: a batch of T·Q rows, task-major, with their targets."""

    batch: Batch
    targets: T


def parts(base: Base, kind: DeltaKind, support: Support[Any], *, at_once: bool) -> Callable[[], list[Batch]]:
    """The support rows for prototypes, made when first asked for and kept: at once, or in parts where no graph is."""
    made: list[Batch] = []

    def get() -> list[Batch]:
        if not made:
            tasks, rows = support.targets.shape
            chunk = rows if at_once else max(1, _CHUNK_ROWS // tasks)
            some = [support.columns(index) for index in torch.split(torch.arange(rows), chunk)]
            made.extend(base.backbone.below(base.inputs.collate(part.rows, tasks), kind) for part in some)
        return made

    return get


def augmentation_for(support: Support[Any], augmentation: Augmentation | None) -> Augmentation | None:
    """The augmentation, where these support sets are small enough for it.

    Raises ValueError where some are and others are not.
    """
    if augmentation is None:
        return None
    small = {most <= augmentation.up_to_shots for most in support.targets.most_shots}
    if len(small) > 1:
        raise ValueError(f"tasks of one pass must all have at most {augmentation.up_to_shots} examples a class, or none of them")
    return augmentation if small.pop() else None


def rows_by_step(
    base: Base, kind: DeltaKind, support: Support[Any], rows_per_step: int, augmentation: Augmentation | None, seed: int
) -> Callable[[int], tuple[Batch, Any]]:
    """The rows of a step by its number, with their targets: the support set, or one of the near-equal parts of a seeded cut of it,
    which are gone through in turn.

    The parts stay the same, so that what lies below the delta is computed once for each, and the shapes that kernels are made for
    come back. With augmentation each row is followed by its views, drawn anew at every step and the same whenever it is asked for.
    """
    count = math.ceil(support.targets.shape[1] / rows_per_step)
    cut = [(index, support.columns(index)) for index in support.targets.parts(count, seed)]
    made: dict[int, tuple[Batch, Any]] = {}

    def rows(step: int) -> tuple[Batch, Any]:
        index, part = cut[step % count]
        if augmentation is not None:
            return _with_views(base, part, index.tolist(), augmentation, (seed, step))
        if step % count not in made:
            batch = base.inputs.collate(part.rows, part.targets.shape[0])
            made[step % count] = base.backbone.below(batch, kind), part.targets
        return made[step % count]

    return rows


def _with_views(
    base: Base, part: Support[Any], index: Sequence[int], augmentation: Augmentation, seed: tuple[int, int]
) -> tuple[Batch, Any]:
    """Each task's rows as they are, then each of its views: [T, m · views]."""
    tasks, width = part.targets.shape
    rows: list[Any] = []
    for t in range(tasks):
        own = part.rows[t * width : (t + 1) * width]
        rows += own
        for view in range(1, augmentation.views):
            for i, row in zip(index, own, strict=True):
                rows.append(None if row is None else base.inputs.view(row, augmentation, (*seed, view, i)))
    return base.inputs.collate(rows, tasks), part.targets.repeat(augmentation.views)
