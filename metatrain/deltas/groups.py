"""Groups of tokens that use the same delta, and products of tokens with the matrices of their groups.

The input of a layer is a matrix x of N tokens. They are divided into G groups of consecutive tokens, and each group has a matrix W
and a vector v of its own:

    y = x W_g        for the tokens x of group g          x: [N, D_in], W: [G, D_in, D_out], y: [N, D_out]
    y = x ⊙ v_g                                           v: [G, D_in]

No matrix is copied for each of its tokens. All functions are differentiable as often as needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from metatrain.errors import UnsupportedDelta

_MOST_PADDING = 2.0  # the largest ratio of places with padding to tokens at which padding is faster than a product for each group


class Groups(Protocol):
    """A division of the tokens of a call into G groups."""

    def check(self, x: Tensor) -> None:
        """Raise UnsupportedDelta if the input or output `x` of a layer cannot be divided into these groups."""

    def product(self, x: Tensor, w: Tensor) -> Tensor:
        """Return x W, [N, D_out], for x [N, D_in] and w [G, D_in, D_out]."""

    def add_product(self, y: Tensor, x: Tensor, w: Tensor) -> Tensor:
        """Return y + x W, for y [N, D_out]."""

    def affine(self, x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        """Return x W + b, for `bias` [G, D_out]."""

    def scaled(self, x: Tensor, v: Tensor) -> Tensor:
        """Return x ⊙ v, [N, D], for v [G, D]."""


@dataclass(frozen=True)
class RowGroups:
    """G = `count` groups of equally many consecutive rows, all padded to the same length."""

    count: int

    def check(self, x: Tensor) -> None:
        if x.shape[0] % self.count:
            raise UnsupportedDelta(
                f"a layer was called with {x.shape[0]} rows, expected a multiple of the batch's {self.count} groups"
            )

    def product(self, x: Tensor, w: Tensor) -> Tensor:
        return torch.bmm(self._split(x), w).flatten(0, 1)

    def add_product(self, y: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return torch.baddbmm(self._split(y), self._split(x), w).flatten(0, 1)

    def affine(self, x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        return torch.baddbmm(bias.unsqueeze(1), self._split(x), w).flatten(0, 1)

    def scaled(self, x: Tensor, v: Tensor) -> Tensor:
        return (self._split(x) * v.unsqueeze(1)).flatten(0, 1)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(self.count, -1, x.shape[-1])


class PaddedGroups:
    """G groups of unequal numbers of tokens, padded to the largest one.

    Each operation is one for all groups. `lengths`: the numbers of tokens, each at least 1. A group is padded with repetitions of
    its last token.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        sizes, largest = np.array(lengths), max(lengths)
        columns, starts = np.arange(largest), np.cumsum([0, *lengths[:-1]])
        places = starts[:, None] + np.minimum(columns, sizes[:, None] - 1)
        self._tokens, self._count = int(sizes.sum()), len(lengths)
        self._places = torch.from_numpy(places.ravel()).to(device)
        self._real = torch.from_numpy((columns < sizes[:, None]).ravel().nonzero()[0]).to(device)

    def check(self, x: Tensor) -> None:
        _check_tokens(x, self._tokens)

    def product(self, x: Tensor, w: Tensor) -> Tensor:
        return self._joined(torch.bmm(self._split(x), w))

    def add_product(self, y: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return y + self.product(x, w)

    def affine(self, x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        return self._joined(torch.baddbmm(bias.unsqueeze(1), self._split(x), w))

    def scaled(self, x: Tensor, v: Tensor) -> Tensor:
        return self._joined(self._split(x) * v.unsqueeze(1))

    def _split(self, x: Tensor) -> Tensor:
        return x.index_select(0, self._places).view(self._count, -1, x.shape[-1])

    def _joined(self, padded: Tensor) -> Tensor:
        return padded.flatten(0, 1).index_select(0, self._real)


@dataclass(frozen=True)
class TokenGroups:
    """G groups of `lengths` tokens, in a call whose rows are packed one after the other without padding."""

    lengths: tuple[int, ...]

    def check(self, x: Tensor) -> None:
        _check_tokens(x, sum(self.lengths))

    def product(self, x: Tensor, w: Tensor) -> Tensor:
        return torch.cat([torch.mm(part, matrix) for part, matrix in zip(self._split(x), w.unbind(), strict=True)])

    def add_product(self, y: Tensor, x: Tensor, w: Tensor) -> Tensor:
        parts = zip(self._split(y), self._split(x), w.unbind(), strict=True)
        return torch.cat([torch.addmm(total, part, matrix) for total, part, matrix in parts])

    def affine(self, x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        parts = zip(bias.unbind(), self._split(x), w.unbind(), strict=True)
        return torch.cat([torch.addmm(vector, part, matrix) for vector, part, matrix in parts])

    def scaled(self, x: Tensor, v: Tensor) -> Tensor:
        return torch.cat([part * vector for part, vector in zip(self._split(x), v.unbind(), strict=True)])

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.split(x, list(self.lengths))


@dataclass(frozen=True)
class _EqualTokenGroups(RowGroups):
    """G groups of equally many tokens, `tokens` in all: each operation is one for all groups."""

    tokens: int

    def check(self, x: Tensor) -> None:
        _check_tokens(x, self.tokens)


def token_groups(lengths: Sequence[int], device: torch.device) -> Groups:
    """Return the groups of a packed call, with `lengths` tokens each.

    The form depends on what is computed fastest. All give the same results, up to rounding.
    """
    tokens = sum(lengths)
    if len(set(lengths)) == 1:
        return _EqualTokenGroups(len(lengths), tokens)
    if len(lengths) * max(lengths) <= _MOST_PADDING * tokens:
        return PaddedGroups(lengths, device)
    return TokenGroups(tuple(lengths))


def _check_tokens(x: Tensor, expected: int) -> None:
    tokens = x.shape[:-1].numel()
    if tokens != expected:
        raise UnsupportedDelta(f"a layer was called with {tokens} tokens, expected the {expected} of the batch")
