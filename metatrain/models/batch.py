"""A batch of rows, packed without padding, or padded in buckets of similar length."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from metatrain.deltas.groups import Groups, token_groups
from metatrain.deltas.packing import Packing, packing
from metatrain.deltas.scope import Delta
from metatrain.models.pooling import Pooler


@dataclass(frozen=True)
class RowDelta:
    """The delta of one call of the model.

    `groups`: which tokens use which entry of the leading axis of `leaves`; None for groups of equally many consecutive rows.
    """

    leaves: Delta | None
    groups: Groups | None = None


@dataclass(frozen=True)
class Lower:
    """The precomputed input of the upper layers of a model, so that only these have to run.

    `states`: the hidden states that enter `upper`, which is a view of the model with its upper layers alone.
    """

    states: Tensor
    upper: nn.Module


class Part(Protocol):
    """The rows of a batch that one call of the model computes.

    `noise`, if any, is added to the word embeddings. `lower`, if any, replaces the lower layers of the model.
    """

    @property
    def rows(self) -> Tensor:
        """The index of each row in the caller's order, [B] int64."""

    @property
    def noise(self) -> Tensor | None: ...

    @property
    def lower(self) -> Lower | None: ...

    @property
    def packing(self) -> Packing | None:
        """The places of the rows in a packed call; None if they are padded."""

    def arguments(self, first_position: int) -> dict[str, Tensor]:
        """Return the arguments of the model. `first_position`: the position id of a row's first token."""

    def with_lower(self, lower: Lower) -> "Part":
        """Return the same rows with precomputed lower layers."""

    def delta(self, leaves: Delta | None, slots: Sequence[int] | None) -> RowDelta:
        """Return the delta of this part.

        `leaves`: the leaves of all groups of the batch. `slots`: for each row of the batch, the entry of the leaves' leading axis
        that it uses; None if the leading axis is that of the batch's groups.
        """

    def pooled(self, states: Tensor, pooler: Pooler) -> Tensor:
        """Return the features [B, F] of the rows, from their last hidden states."""

    def states_by_row(self, states: Tensor) -> list[Tensor]:
        """Return the last hidden states [L, D] of the real tokens of each row."""

    def split(self, groups: int, most: int) -> list["Part"]:
        """Split into parts of at most `most` rows, or of one row of each of the G = `groups` groups."""

    def only(self, kept: Mapping[int, tuple[int, int]]) -> "Part | None":
        """Return only some rows, without computing anything again, or None.

        None means that a part of this kind has to be built anew. `kept`: {index of a row in the caller's order: (its new index,
        its new group)}. It may name rows of other parts too.
        """


@dataclass(frozen=True)
class Batch:
    """B rows, divided into parts. `pooler`: turns the hidden states of a row into its features."""

    parts: tuple[Part, ...]
    pooler: Pooler

    @property
    def size(self) -> int:
        """The number of rows, B."""
        return sum(len(part.rows) for part in self.parts)

    def only(self, kept: Mapping[int, tuple[int, int]]) -> "Batch | None":
        """Return the batch of only some rows, or None if it has to be built anew; see `Part.only`."""
        parts = [reduced for part in self.parts if (reduced := part.only(kept)) is not None]
        if len(parts) < len(self.parts):
            return None
        return Batch(tuple(part for part in parts if len(part.rows)), self.pooler)


@dataclass(frozen=True)
class Bucket:
    """B rows of similar length, padded to the longest of them (a `Part`).

    A group is a set of rows that use the same delta. The bucket contains equally many rows of each group, one group after the other
    (group-major). `inputs`: the arguments of the model, each [B, L, …]. `mask` [B, L]: 1 for a real token, 0 for padding. `noise`
    and the states of `lower` are [B, L, D].
    """

    inputs: dict[str, Tensor]
    mask: Tensor
    rows: Tensor
    noise: Tensor | None = None
    lower: Lower | None = None

    @property
    def packing(self) -> None:
        return None

    def arguments(self, first_position: int) -> dict[str, Tensor]:
        return {**self.inputs, "attention_mask": self.mask}

    def with_lower(self, lower: Lower) -> "Bucket":
        return replace(self, lower=lower)

    def delta(self, leaves: Delta | None, slots: Sequence[int] | None) -> RowDelta:
        if leaves is None or slots is None:
            return RowDelta(leaves)
        index = torch.tensor([slots[row] for row in self.rows.tolist()], device=self.rows.device)
        return RowDelta({name: leaf.index_select(0, index) for name, leaf in leaves.items()})

    def pooled(self, states: Tensor, pooler: Pooler) -> Tensor:
        return pooler(states, self.mask)

    def states_by_row(self, states: Tensor) -> list[Tensor]:
        return [row[real.bool()] for row, real in zip(states, self.mask, strict=True)]

    def split(self, groups: int, most: int) -> list[Part]:
        each = len(self.rows) // groups
        columns = torch.split(torch.arange(each, device=self.rows.device), max(1, most // groups))
        firsts = each * torch.arange(groups, device=self.rows.device).unsqueeze(1)
        return [self._only((firsts + some).flatten()) for some in columns]

    def only(self, kept: Mapping[int, tuple[int, int]]) -> None:
        """Return None, because other rows may need other buckets."""

    def _only(self, index: Tensor) -> "Bucket":
        noise = None if self.noise is None else self.noise[index]
        lower = None if self.lower is None else replace(self.lower, states=self.lower.states[index])
        inputs = {name: tensor[index] for name, tensor in self.inputs.items()}
        return Bucket(inputs, self.mask[index], self.rows[index], noise, lower)


@dataclass(frozen=True)
class Pack:
    """B rows as one sequence of their N real tokens, one row after the other (a `Part`).

    `ids` [N]: the token ids. `lengths`: the number of tokens of each row. `groups`: the group of each row, in rising order. `noise`
    and the states of `lower` are [1, N, D].
    """

    ids: Tensor
    lengths: tuple[int, ...]
    rows: Tensor
    groups: tuple[int, ...]
    noise: Tensor | None = None
    lower: Lower | None = None

    @cached_property
    def packing(self) -> Packing:
        return packing(self.lengths, self.ids.device)

    def arguments(self, first_position: int) -> dict[str, Tensor]:
        # The mask has no padding. Without one, a causal architecture would look for the rows itself.
        ids = self.ids.unsqueeze(0)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": self._positions(first_position)}

    def _positions(self, first_position: int) -> Tensor:
        """Return the position of each token in its row, from `first_position` on, [1, N].

        An architecture that counts from 1 or later does not count padding tokens, even those that a text contains literally, as in
        `create_position_ids_from_input_ids` of transformers' RoBERTa. Their id and their position are `first_position` − 1.
        """
        bounds, is_counted = self.packing.bounds.long(), self.ids != first_position - 1
        counts = is_counted.cumsum(0)
        before = nn.functional.pad(counts, (1, 0))[bounds[:-1]].repeat_interleave(bounds.diff())
        return ((counts - before) * is_counted + first_position - 1).unsqueeze(0)

    def with_lower(self, lower: Lower) -> "Pack":
        return replace(self, lower=lower)

    def delta(self, leaves: Delta | None, slots: Sequence[int] | None) -> RowDelta:
        if not leaves:
            return RowDelta(leaves)
        entries = len(next(iter(leaves.values())))
        used = self.groups if slots is None else [slots[row] for row in self.rows.tolist()]
        if entries == 1:
            used = [0] * len(self.lengths)
        runs = [(slot, [i for i, _ in run]) for slot, run in itertools.groupby(enumerate(used), key=lambda pair: pair[1])]
        groups = token_groups([sum(self.lengths[i] for i in run) for _, run in runs], self.ids.device)
        order = [slot for slot, _ in runs]
        if order == list(range(entries)):
            return RowDelta(leaves, groups)
        index = torch.tensor(order, device=self.ids.device)
        return RowDelta({name: leaf.index_select(0, index) for name, leaf in leaves.items()}, groups)

    def pooled(self, states: Tensor, pooler: Pooler) -> Tensor:
        tokens, features = states[0], []
        for block in self.packing.blocks:
            padded = block.padded(tokens)
            features.append(pooler(padded, padded.new_ones(padded.shape[:2]) if block.mask is None else block.mask.long()))
        order = [row for block in self.packing.blocks for row in block.rows]
        return torch.cat(features)[torch.tensor(order).argsort().to(states.device)]

    def states_by_row(self, states: Tensor) -> list[Tensor]:
        return list(torch.split(states[0], list(self.lengths)))

    def split(self, groups: int, most: int) -> list[Part]:
        rows, each = self.rows.tolist(), max(groups, most)
        chunks = [slice(first, first + each) for first in range(0, len(rows), each)]
        return [self._with(range(len(rows))[chunk], rows[chunk], self.groups[chunk]) for chunk in chunks]

    def only(self, kept: Mapping[int, tuple[int, int]]) -> "Pack":
        chosen = [(i, *kept[row]) for i, row in enumerate(self.rows.tolist()) if row in kept]
        return self._with([i for i, _, _ in chosen], [row for _, row, _ in chosen], [group for _, _, group in chosen])

    def _with(self, chosen: Sequence[int], rows: Sequence[int], groups: Sequence[int]) -> "Pack":
        """Return the rows at the positions `chosen`, with these indices and groups."""
        ends = list(itertools.accumulate(self.lengths))
        places = [place for i in chosen for place in range(ends[i] - self.lengths[i], ends[i])]
        index = torch.tensor(places, dtype=torch.int64, device=self.ids.device)
        noise = None if self.noise is None else self.noise[:, index]
        lower = None if self.lower is None else replace(self.lower, states=self.lower.states[:, index])
        lengths, device = tuple(self.lengths[i] for i in chosen), self.ids.device
        return Pack(self.ids[index], lengths, torch.tensor(rows, dtype=torch.int64, device=device), tuple(groups), noise, lower)
