"""Support sets as rows, and the batches that inner steps take from them."""

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
_CHUNK_ROWS = 128  # rows of one forward pass without a graph: bounds memory, and changes results only by rounding


@dataclass(frozen=True)
class Support(Generic[T]):
    """T support sets of M rows each.

    `rows`: T·M encoded examples, task-major, None for padding. `targets`: their labels or outputs.
    """

    rows: Sequence[Any]
    targets: T

    def columns(self, index: torch.Tensor) -> "Support[T]":
        """Return the rows `index` [m] of every task."""
        tasks, width = self.targets.shape
        return Support([self.rows[t * width + i] for t in range(tasks) for i in index.tolist()], self.targets.columns(index))

    def only(self, which: Sequence[int]) -> "Support[T]":
        """Return only these of the tasks, without the rows that are padding in all of them."""
        width = self.targets.shape[1]
        kept = Support([row for t in which for row in self.rows[t * width : (t + 1) * width]], self.targets.only(which))
        return kept.columns(kept.targets.real().any(0).nonzero()[:, 0])


@dataclass(frozen=True)
class Query(Generic[T]):
    """T query sets: a batch of T·Q rows, task-major, with their targets."""

    batch: Batch
    targets: T


def parts(base: Base, kind: DeltaKind, support: Support[Any], *, at_once: bool) -> Callable[[], list[Batch]]:
    """Return a function that gives all support rows as batches, computed at its first call and kept.

    `at_once`: one batch, for a forward pass with a graph; otherwise batches of a bounded number of rows.
    """
    cached: list[Batch] = []

    def get() -> list[Batch]:
        if not cached:
            tasks, rows = support.targets.shape
            chunk = rows if at_once else max(1, _CHUNK_ROWS // tasks)
            chunks = [support.columns(index) for index in torch.split(torch.arange(rows), chunk)]
            cached.extend(base.backbone.below(base.inputs.collate(part.rows, tasks), kind) for part in chunks)
        return cached

    return get


def augmentation_for(support: Support[Any], augmentation: Augmentation | None) -> Augmentation | None:
    """Return the augmentation if these support sets are small enough for it, otherwise None.

    Raises ValueError if some are small enough and others are not.
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
    """Return a function from the number of a step to its batch of support rows and their targets.

    A step takes the whole support set if it has at most `rows_per_step` rows. A larger one is split into parts of nearly equal
    size, seeded, and the steps take the parts in turn. The parts stay the same, so what lies below the delta is computed once for
    each part, and kernels compiled for their shapes are reused.

    With augmentation the rows are followed by their views. The views of a row depend only on the seed, the step and the index of
    the row: each step has other views, and the same step always has the same ones.
    """
    count = math.ceil(support.targets.shape[1] / rows_per_step)
    split = [(index, support.columns(index)) for index in support.targets.parts(count, seed)]
    cached: dict[int, tuple[Batch, Any]] = {}

    def rows(step: int) -> tuple[Batch, Any]:
        index, part = split[step % count]
        if augmentation is not None:
            return _with_views(base, part, index.tolist(), augmentation, (seed, step))
        if step % count not in cached:
            batch = base.inputs.collate(part.rows, part.targets.shape[0])
            cached[step % count] = base.backbone.below(batch, kind), part.targets
        return cached[step % count]

    return rows


def _with_views(
    base: Base, part: Support[Any], index: Sequence[int], augmentation: Augmentation, seed: tuple[int, int]
) -> tuple[Batch, Any]:
    """Return each task's unchanged rows, followed by each of their views: [T, m · views]."""
    tasks, width = part.targets.shape
    rows: list[Any] = []
    for t in range(tasks):
        originals = part.rows[t * width : (t + 1) * width]
        rows += originals
        for view in range(1, augmentation.views):
            for i, row in zip(index, originals, strict=True):
                rows.append(None if row is None else base.inputs.view(row, augmentation, (*seed, view, i)))
    return base.inputs.collate(rows, tasks), part.targets.repeat(augmentation.views)
