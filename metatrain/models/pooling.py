"""Pooling: from the hidden states of a row's tokens to the features of the row.

Poolings have the names of sentence-transformers and compute the same. Several of them give their features one after the other.
After them come the modules of the base model that change pooled features (`metatrain.models.modules`), and at the end the features
are scaled to length 1. Every row is padded behind its last token, so position 0 is always the row's first token.
"""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

PoolingName = Literal["mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"]
Pooling = PoolingName | tuple[PoolingName, ...]
"""One pooling, or several whose features are concatenated in this order."""


class FeatureModule(Protocol):
    """A module that changes the pooled features of each row by itself."""

    def __call__(self, features: Tensor) -> Tensor:
        """Return the changed features [B, F'] of features [B, F]."""

    def width(self, features: int) -> int:
        """Return F' for F = `features`. Raises ValueError if the module does not take F features."""


class Pooler:
    """A function from the hidden states of rows to their features, which have length 1.

    `skipped_tokens`: the number of tokens at the beginning of each row, those of the prompt, that are not pooled. A row with no
    other tokens is pooled as a whole, so that its features are finite. `modules` are called after the pooling, in this order.
    """

    def __init__(self, pooling: Pooling, *, skipped_tokens: int = 0, modules: Sequence[FeatureModule] = ()) -> None:
        self.names: tuple[PoolingName, ...] = (pooling,) if isinstance(pooling, str) else pooling
        self.skipped_tokens, self.modules = skipped_tokens, tuple(modules)

    def width(self, hidden_size: int) -> int:
        """Return F, the number of features, for hidden states of `hidden_size` numbers.

        Raises ValueError if a module does not take the features of the one before it.
        """
        width = len(self.names) * hidden_size
        for module in self.modules:
            width = module.width(width)
        return width

    def __call__(self, states: Tensor, mask: Tensor) -> Tensor:
        """Pool hidden states [B, L, D], at least float32, to features [B, F] of length 1.

        `mask` [B, L]: 1 for a real token, 0 for padding.
        """
        if self.skipped_tokens:
            text = mask.clone()
            text[:, : self.skipped_tokens] = 0
            mask = torch.where(text.any(dim=1, keepdim=True), text, mask)
        found = [POOLINGS[name](states, mask) for name in self.names]
        features = found[0] if len(found) == 1 else torch.cat(found, dim=-1)
        for module in self.modules:
            features = module(features)
        return nn.functional.normalize(features, dim=-1)


def pooled(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Pool hidden states [B, L, D], at least float32, to features of length 1, without any other module.

    `mask` [B, L]: 1 for a real token, 0 for padding.
    """
    return Pooler(pooling)(states, mask)


def _sum(states: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the states of each row [B, D], and the sum of the weights [B, 1].

    `weights`: [B, L].
    """
    weights = weights.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1), weights.sum(1)


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    total, tokens = _sum(states, mask)
    return total / tokens


def _mean_sqrt_len_tokens(states: Tensor, mask: Tensor) -> Tensor:
    total, tokens = _sum(states, mask)
    return total / tokens.sqrt()


def _weightedmean(states: Tensor, mask: Tensor) -> Tensor:
    """Weigh each token by its position in the row, from 1. Positions of skipped tokens count."""
    total, weight = _sum(states, mask * torch.arange(1, mask.shape[1] + 1, device=mask.device))
    return total / weight


def _max(states: Tensor, mask: Tensor) -> Tensor:
    return states.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).max(dim=1).values


def _at(states: Tensor, positions: Tensor) -> Tensor:
    return states[torch.arange(len(states), device=states.device), positions]


def _cls(states: Tensor, mask: Tensor) -> Tensor:
    return _at(states, mask.int().argmax(dim=1))


def _lasttoken(states: Tensor, mask: Tensor) -> Tensor:
    return _at(states, mask.shape[1] - 1 - mask.int().flip(1).argmax(dim=1))


POOLINGS: dict[PoolingName, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _cls,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len_tokens,
    "weightedmean": _weightedmean,
    "lasttoken": _lasttoken,
}
"""The poolings by name, in the order in which sentence-transformers concatenates those that its older files switch on."""
