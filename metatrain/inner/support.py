"""Support and query sets of T tasks, and the batches of support rows that inner steps use."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from metatrain.deltas import DeltaKind
from metatrain.models.base import Base
from metatrain.models.batch import Batch
from metatrain.models.inputs.augment import Augmentation
from metatrain.readouts.readout import Targets

T = TypeVar("T", bound=Targets)
_CHUNK_ROWS = 128  # most rows of one forward pass without a graph; it bounds memory, and changes results only by rounding


@dataclass(frozen=True)
class Support(Generic[T]):
    """The support sets of T tasks, padded to M rows each.

    `rows`: T·M encoded examples, task after task, with None for padding. `targets`: their labels or other correct outputs.
    """

    rows: Sequence[Any]
    targets: T

    def columns(self, index: torch.Tensor) -> "Support[T]":
        """Return the support sets with only the rows at positions `index` [m] of each task."""
        tasks, width = self.targets.shape
        return Support([self.rows[t * width + i] for t in range(tasks) for i in index.tolist()], self.targets.columns(index))

    def only(self, which: Sequence[int]) -> "Support[T]":
        """Return only the tasks at the indices `which`, without rows that are padding in all of them."""
        columns = self.columns_of(which)
        return Support([self.rows[row] for row in self.kept(which)], self.targets.only(which).columns(columns))

    def kept(self, which: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Return {index of a row that `only` keeps: (its index, its task)}, both counted in the result."""
        columns, width = self.columns_of(which).tolist(), self.targets.shape[1]
        rows = [(t * width + column, task) for task, t in enumerate(which) for column in columns]
        return {row: (number, task) for number, (row, task) in enumerate(rows)}

    def columns_of(self, which: Sequence[int]) -> torch.Tensor:
        """Return the positions of the rows that `only` keeps of each task."""
        return self.targets.only(which).real().any(0).nonzero()[:, 0]


@dataclass(frozen=True)
class Query(Generic[T]):
    """The query sets of T tasks: T·Q encoded rows, and their targets.

    The rows are task after task, with None for padding.
    """

    rows: Sequence[Any]
    targets: T


def parts(base: Base, kind: DeltaKind, support: Support[Any], *, at_once: bool) -> Callable[[], list[Batch]]:
    """Return a function that returns all support rows as a list of batches, built once and cached.

    `at_once`: build one batch, for a forward pass with an autograd graph; otherwise build batches of a bounded number of rows. The
    layers of the model below the lowest one that `kind` changes are run in advance, once for each batch.
    """
    cached: list[Batch] = []

    def get() -> list[Batch]:
        if not cached:
            tasks, rows = support.targets.shape
            chunk = rows if at_once else max(1, _CHUNK_ROWS // tasks)
            chunks = [support.columns(index) for index in torch.split(torch.arange(rows), chunk)]
            cached.extend(base.backbone.below(base.collate(part.rows, tasks, per_token=kind.per_token), kind) for part in chunks)
        return cached

    return get


def augmentation_for(support: Support[Any], augmentation: Augmentation | None) -> Augmentation | None:
    """Return the augmentation if these support sets are small enough for it, otherwise None.

    A support set is small enough if no class has more than `augmentation.up_to_shots` examples. Raises ValueError if only some of
    the support sets are small enough.
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
    """Return a function that maps a step number to that step's batch of support rows and their targets.

    A step uses the whole support set if it has at most `rows_per_step` rows. A larger support set is split, by `seed`, into parts
    of nearly equal size, and the steps use the parts in turn. The parts never change, so the part of the model below the delta is
    computed only once for each of them, and kernels compiled for their shapes are reused.

    With augmentation, augmented views of the rows follow the rows themselves. The views of a row depend only on the seed, the step
    and the row's index: different steps have different views, and a repeated step has the same views again.
    """
    count = math.ceil(support.targets.shape[1] / rows_per_step)
    split = [(index, support.columns(index)) for index in support.targets.parts(count, seed)]
    cached: dict[int, tuple[Batch, Any]] = {}

    def rows(step: int) -> tuple[Batch, Any]:
        index, part = split[step % count]
        if augmentation is not None:
            return _with_views(base, kind, part, index.tolist(), augmentation, (seed, step))
        if step % count not in cached:
            batch = base.collate(part.rows, part.targets.shape[0], per_token=kind.per_token)
            cached[step % count] = base.backbone.below(batch, kind), part.targets
        return cached[step % count]

    return rows


def _with_views(
    base: Base, kind: DeltaKind, part: Support[Any], index: Sequence[int], augmentation: Augmentation, seed: tuple[int, int]
) -> tuple[Batch, Any]:
    """Return each task's unchanged rows and their augmented views as a batch [T, m · views], with targets.

    m is the number of rows of a task in `part`. `index` [m]: their positions in the whole support set. The number of views per row,
    `augmentation.views`, includes the unchanged row.
    """
    tasks, width = part.targets.shape
    rows: list[Any] = []
    for t in range(tasks):
        originals = part.rows[t * width : (t + 1) * width]
        rows += originals
        for view in range(1, augmentation.views):
            for i, row in zip(index, originals, strict=True):
                rows.append(None if row is None else base.inputs.view(row, augmentation, (*seed, view, i)))
    return base.collate(rows, tasks, per_token=kind.per_token), part.targets.repeat(augmentation.views)
