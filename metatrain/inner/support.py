"""Support sets as tensors: what the inner loop goes through, row by row and step by step."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metatrain.deltas import DeltaKind
from metatrain.models.inputs.augment import Augmentation, embedding_noise, token_view
from metatrain.models.text import TextBase, TokenBatch
from metatrain.readouts.heads import memberships
from metatrain.readouts.objectives import has_partner

_CHUNK_ROWS = 128  # rows of one forward pass that keeps no graph; bounds memory, changes no result beyond rounding


@dataclass(frozen=True)
class Support:
    """T support sets of M rows each: `ids`, token ids of T·M rows, task-major, an empty row for padding; `labels` [T, M] int64,
    −1 for padding; C classes."""

    ids: Sequence[Sequence[int]]
    labels: Tensor
    classes: int

    def columns(self, index: Tensor) -> "Support":
        """The rows `index` [m] of every task."""
        tasks, rows = self.labels.shape
        ids = [self.ids[t * rows + i] for t in range(tasks) for i in index.tolist()]
        return Support(ids, self.labels[:, index.to(self.labels.device)], self.classes)

    def only(self, which: Sequence[int]) -> "Support":
        """These of the tasks, without the rows that are padding in all of them."""
        rows = self.labels.shape[1]
        ids = [row for t in which for row in self.ids[t * rows : (t + 1) * rows]]
        kept = Support(ids, self.labels[list(which)], self.classes)
        return kept.columns((kept.labels >= 0).any(0).nonzero()[:, 0])


@dataclass(frozen=True)
class Query:
    """T query sets: `tokens` (T·Q rows, task-major) with `labels` [T, Q], −1 for padding."""

    tokens: TokenBatch
    labels: Tensor


def present(support: Support) -> Tensor:
    """[T, C]: the task has an example of the class."""
    return memberships(support.labels, support.classes).sum(1) > 0


def parts(base: TextBase, kind: DeltaKind, support: Support, *, at_once: bool) -> Callable[[], list[TokenBatch]]:
    """The support rows for prototypes, made when first asked for and kept: at once, or in parts where no graph is."""
    made: list[TokenBatch] = []

    def get() -> list[TokenBatch]:
        if not made:
            tasks, rows = support.labels.shape
            chunk = rows if at_once else max(1, _CHUNK_ROWS // tasks)
            some = [support.columns(index) for index in torch.split(torch.arange(rows), chunk)]
            made.extend(base.prefix(base.collate(part.ids, tasks), kind) for part in some)
        return made

    return get


def augmentation_for(support: Support, augmentation: Augmentation | None) -> Augmentation | None:
    """The augmentation, where these support sets are small enough for it."""
    if augmentation is None:
        return None
    shots = memberships(support.labels, support.classes).sum(1)
    small = {int(most) <= augmentation.up_to_shots for most in shots.amax(1)}
    if len(small) > 1:
        raise ValueError(f"tasks of one pass must all have at most {augmentation.up_to_shots} examples a class, or none of them")
    return augmentation if small.pop() else None


def has_partners(support: Support, augmentation: Augmentation | None) -> bool:
    """Every task has a row with another of its class."""
    return augmentation is not None or bool(has_partner(support.labels).any(1).all())


def rows_by_step(
    base: TextBase, kind: DeltaKind, support: Support, rows_per_step: int, augmentation: Augmentation | None, seed: int
) -> Callable[[int], tuple[TokenBatch, Tensor]]:
    """The rows of a step by its number: the support set, or one of the near-equal parts of a seeded cut of it, which are gone
    through in turn.

    The parts stay the same, so that what lies below the delta is computed once for each, and the shapes that kernels are made for
    come back. With augmentation each row is followed by its views, drawn anew at every step and the same whenever it is asked for.
    """
    count = math.ceil(support.labels.shape[1] / rows_per_step)
    cut = [(index, support.columns(index)) for index in _cut(support.labels[0], count, seed)]
    made: dict[int, tuple[TokenBatch, Tensor]] = {}

    def rows(step: int) -> tuple[TokenBatch, Tensor]:
        index, part = cut[step % count]
        if augmentation is not None:
            return _with_views(base, part, index.tolist(), augmentation, (seed, step))
        if step % count not in made:
            made[step % count] = base.prefix(base.collate(part.ids, part.labels.shape[0]), kind), part.labels
        return made[step % count]

    return rows


def _cut(labels: Tensor, count: int, seed: int) -> list[Tensor]:
    """The rows in `count` near-equal parts, dealt in twos or threes of a class: no row is alone of its class in its part
    unless it is alone of its class at all."""
    if count == 1:
        return [torch.arange(len(labels))]
    rng = np.random.default_rng(seed)
    few: list[list[int]] = []
    for label in sorted(set(labels.tolist())):
        own = rng.permutation((labels == label).nonzero()[:, 0].tolist()).tolist()
        few += [own[i : i + 2] for i in range(0, len(own) - len(own) % 2, 2)]
        if len(own) % 2 and len(own) > 1:
            few[-1].append(own[-1])
        elif len(own) == 1:
            few.append(own)
    parts: list[list[int]] = [[] for _ in range(count)]
    for i in rng.permutation(len(few)).tolist():
        min(parts, key=len).extend(few[i])
    return [torch.tensor(part) for part in parts]


def _with_views(
    base: TextBase, part: Support, index: Sequence[int], augmentation: Augmentation, seed: tuple[int, int]
) -> tuple[TokenBatch, Tensor]:
    """Each task's rows as they are, then each of its views: [T, m · views]."""
    tasks, rows = part.labels.shape
    mask = base.mask_token
    ids: list[Sequence[int]] = []
    noise: dict[int, NDArray[np.float32]] = {}
    for t in range(tasks):
        own = part.ids[t * rows : (t + 1) * rows]
        ids += own
        for view in range(1, augmentation.views):
            for i, row in zip(index, own, strict=True):
                key = (*seed, view, i)
                if augmentation.kind == "embedding_noise" and row:
                    noise[len(ids)] = embedding_noise(len(row), base.hidden_size, augmentation.strength, key)
                ids.append(token_view(row, augmentation.kind, augmentation.strength, mask, key))
    return base.collate(ids, tasks, noise or None), part.labels.repeat(1, augmentation.views)
