"""Packing: the rows of a call as one sequence of real tokens, and the blocks for attention.

A packed call has the shape [1, N, …] for B rows with N real tokens in total, one row after the other. All that a model computes for
each token by itself, which is nearly everything, then needs no padding. Attention and pooling work on rows. For them, the rows are
divided into blocks of similar length, and padded to [b, L, …] in each block.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

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
    padding repeats a token of its row. `mask` [b, L]: True for a real token; None if there is no padding. `real`: the places with
    real tokens, in order; None for all. `whole`: True if the places are the whole sequence in its order.
    """

    rows: tuple[int, ...]
    places: Tensor
    mask: Tensor | None
    real: Tensor | None
    whole: bool

    @property
    def length(self) -> int:
        """L, the length of the longest row."""
        return len(self.places) // len(self.rows)

    def padded(self, tokens: Tensor) -> Tensor:
        """Return [b, L, …] for tokens [N, …]."""
        taken = tokens if self.whole else tokens.index_select(0, self.places)
        return taken.view(len(self.rows), -1, *tokens.shape[1:])

    def unpadded(self, states: Tensor) -> Tensor:
        """Return the real tokens of states [b, L, …], one row after the other."""
        flat = states.flatten(0, 1)
        return flat if self.real is None else flat.index_select(0, self.real)


@dataclass(frozen=True)
class Packing:
    """The rows of a packed call. `lengths`: their numbers of tokens, each at least 1.

    `blocks`: the rows in blocks of similar length. `order` [N]: the position of each token of the sequence in the concatenated real
    tokens of the blocks; None if they are in the same order.
    """

    lengths: tuple[int, ...]
    blocks: tuple[Block, ...]
    order: Tensor | None

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the tokens of the sequence [N, …], from the real tokens of each block."""
        tokens = parts[0] if len(parts) == 1 else torch.cat(list(parts))
        return tokens if self.order is None else tokens.index_select(0, self.order)


def packing(lengths: Sequence[int], device: torch.device) -> Packing:
    """Divide rows with these numbers of tokens into blocks of similar length."""
    starts = np.cumsum([0, *lengths[:-1]])
    ranked = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    cuts = [0, *_cuts([lengths[row] for row in ranked]), len(ranked)]
    blocks, taken = [], []
    for first, end in itertools.pairwise(cuts):
        rows = sorted(ranked[first:end])
        sizes = np.array([lengths[row] for row in rows])
        columns = np.arange(sizes.max())
        is_real = columns < sizes[:, None]
        places = (starts[rows][:, None] + np.minimum(columns, sizes[:, None] - 1)).ravel()
        real, is_whole = None, len(rows) == len(lengths) and bool(is_real.all())
        if not is_real.all():
            real = torch.from_numpy(is_real.ravel().nonzero()[0]).to(device)
        mask = None if real is None else torch.from_numpy(is_real).to(device)
        blocks.append(Block(tuple(rows), torch.from_numpy(places).to(device), mask, real, is_whole))
        taken.append(places[is_real.ravel()])
    order = np.concatenate(taken)
    is_sorted = bool((order[1:] > order[:-1]).all())
    return Packing(tuple(lengths), tuple(blocks), None if is_sorted else torch.from_numpy(np.argsort(order)).to(device))


def _cuts(lengths: Sequence[int]) -> list[int]:
    """Return the ranks at which new blocks begin, for rows in falling order of length."""
    cuts, start = [], 0
    for rank, length in enumerate(lengths):
        enough = (rank - start) * lengths[start] >= _MIN_PLACES and (len(lengths) - rank) * length >= _MIN_PLACES
        if enough and length < _SHORTEST_SHARE * lengths[start]:
            cuts.append(rank)
            start = rank
    return cuts
