"""Packing: the rows of a call as one sequence of real tokens, and the blocks for attention.

A packed call has the shape [1, N, …] for B rows with N real tokens in total, one row after the other. All that a model computes for
each token by itself, which is nearly everything, then needs no padding. Attention and pooling work on rows. For them, the rows are
divided into blocks of similar length, and padded to [b, L, …] in each block.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

# A new block begins at the first row that is shorter than this share of the longest row in the block, if both have enough places.
# A block costs some calls of small kernels in each layer, its padding costs attention alone.
_SHORTEST_SHARE = 0.6
_MIN_PLACES = 256


@dataclass(frozen=True)
class Block:
    """The b rows of a packed call that are padded to [b, L] for attention and pooling.

    `rows`: the numbers of the rows in the call. `places` [b · L]: the position in the call's sequence of the token at each place;
    padding repeats the last token of its row. None if the places are the whole sequence in its order. `mask` [b, L]: True for a
    real token; None if there is no padding.
    """

    rows: tuple[int, ...]
    length: int
    places: Tensor | None
    mask: Tensor | None

    def padded(self, tokens: Tensor) -> Tensor:
        """Return [b, L, …] for tokens [N, …]."""
        taken = tokens if self.places is None else tokens.index_select(0, self.places)
        return taken.view(len(self.rows), self.length, *tokens.shape[1:])


@dataclass(frozen=True)
class Packing:
    """The rows of a packed call.

    `lengths`: their numbers of tokens, each at least 1. `device`: that of the call. `blocks`: the rows in blocks of similar length.
    `order` [N]: where each token of the sequence is among the places of all blocks; None if the places are the sequence itself.
    """

    lengths: tuple[int, ...]
    device: torch.device
    blocks: tuple[Block, ...]
    order: Tensor | None

    @cached_property
    def bounds(self) -> Tensor:
        """The position where each row begins, and the end of the last one, [B + 1] int32."""
        ends = np.cumsum([0, *self.lengths]).astype(np.int32)
        return torch.from_numpy(ends).to(self.device)

    def joined(self, padded: Sequence[Tensor]) -> Tensor:
        """Return the tokens of the sequence [N, …], from a tensor [b, L, …] for each block."""
        places = padded[0].flatten(0, 1) if len(padded) == 1 else torch.cat([part.flatten(0, 1) for part in padded])
        return places if self.order is None else places.index_select(0, self.order)


def packing(lengths: Sequence[int], device: torch.device) -> Packing:
    """Divide rows with these numbers of tokens into blocks of similar length."""
    starts, tokens = np.cumsum([0, *lengths[:-1]]), sum(lengths)
    ranked = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    cuts = [0, *_cuts([lengths[row] for row in ranked]), len(ranked)]
    order, filled = np.empty(tokens, dtype=np.int64), 0
    blocks = []
    for first, end in itertools.pairwise(cuts):
        rows = sorted(ranked[first:end])
        sizes = np.array([lengths[row] for row in rows])
        columns = np.arange(sizes.max())
        places = (starts[rows][:, None] + np.minimum(columns, sizes[:, None] - 1)).ravel()
        is_real = columns < sizes[:, None]
        order[places[is_real.ravel()]] = filled + is_real.ravel().nonzero()[0]
        filled += len(places)
        mask = None if is_real.all() else torch.from_numpy(is_real).to(device)
        is_whole = mask is None and len(rows) == len(lengths)
        blocks.append(Block(tuple(rows), len(columns), None if is_whole else torch.from_numpy(places).to(device), mask))
    is_sequence = filled == tokens and bool((order == np.arange(tokens)).all())
    return Packing(tuple(lengths), device, tuple(blocks), None if is_sequence else torch.from_numpy(order).to(device))


def _cuts(lengths: Sequence[int]) -> list[int]:
    """Return the ranks at which new blocks begin, for rows in falling order of length."""
    cuts, start = [], 0
    for rank, length in enumerate(lengths):
        enough = (rank - start) * lengths[start] >= _MIN_PLACES and (len(lengths) - rank) * length >= _MIN_PLACES
        if enough and length < _SHORTEST_SHARE * lengths[start]:
            cuts.append(rank)
            start = rank
    return cuts
