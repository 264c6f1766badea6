"""Augmented views of a support set: additional rows with the same meaning, made without another model.

    token_dropout     each middle token is dropped with probability `strength`
    span_mask         consecutive middle tokens, a share `strength` of all middle tokens, are replaced by mask tokens
    embedding_noise   Uniform(−1, 1) · strength / √(L·D) is added to each token embedding (Jain et al. 2023, arXiv:2310.05914)

The first and the last token (special tokens of an encoder) and at least one middle token are always kept. A random draw depends
only on (seed, row), so a task has the same views in every batch of tasks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

AugmentationKind = Literal["token_dropout", "span_mask", "embedding_noise"]


class Augmentation(BaseModel):
    """The settings of an augmentation, which turns each example into `views` rows.

    The first of these rows is the unchanged example. A support set is augmented only if none of its classes has more than
    `up_to_shots` examples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: AugmentationKind
    strength: float = Field(gt=0, description="a share of the tokens in (0, 1), or the noise's alpha")
    views: int = Field(default=2, ge=2, le=8)
    up_to_shots: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _share_is_below_one(self) -> "Augmentation":
        if METHODS[self.kind].share and self.strength >= 1:
            raise ValueError(f"strength: expected a share of the tokens below 1 for {self.kind}, got {self.strength:g}")
        return self


@dataclass(frozen=True)
class View:
    """An augmented copy of a row: token ids, and the noise [L, D] to add to their embeddings, if any."""

    ids: Sequence[int]
    noise: NDArray[np.float32] | None = None


class TokenEncoder(Protocol):
    """The properties of a text encoder that an augmentation method uses. `width`: D of the embeddings."""

    width: int

    @property
    def mask_token(self) -> int: ...


class Method(Protocol):
    """A method of augmentation."""

    @property
    def share(self) -> bool:
        """True if `strength` is a share of the tokens, which has to be below 1."""

    def view(self, ids: Sequence[int], strength: float, encoder: TokenEncoder, seed: Sequence[int]) -> View:
        """Return a randomly augmented copy of a row of token ids. `seed` determines the random draw."""


@dataclass(frozen=True)
class MiddleTokens:
    """A method that changes only the tokens between the first and the last.

    Rows with fewer than two such tokens are unchanged. `change`: returns the new tokens, given the old ones, the strength, the
    encoder and a random generator.
    """

    change: Callable[[list[int], float, TokenEncoder, np.random.Generator], list[int]]
    share: bool = True

    def view(self, ids: Sequence[int], strength: float, encoder: TokenEncoder, seed: Sequence[int]) -> View:
        middle = list(ids[1:-1])
        if len(middle) < 2:
            return View(list(ids))
        return View([ids[0], *self.change(middle, strength, encoder, np.random.default_rng(seed)), ids[-1]])


@dataclass(frozen=True)
class EmbeddingNoise:
    """A method that adds uniform noise to every token embedding."""

    share: bool = False

    def view(self, ids: Sequence[int], strength: float, encoder: TokenEncoder, seed: Sequence[int]) -> View:
        rng, length, width = np.random.default_rng(seed), len(ids), encoder.width
        noise: NDArray[np.float32] = (rng.uniform(-1, 1, (length, width)) * strength / np.sqrt(length * width)).astype(np.float32)
        return View(ids, noise)


def _drop(middle: list[int], strength: float, _encoder: TokenEncoder, rng: np.random.Generator) -> list[int]:
    keep = rng.random(len(middle)) >= strength
    if not keep.any():
        keep[rng.integers(len(middle))] = True
    return [token for token, kept in zip(middle, keep.tolist(), strict=True) if kept]


def _mask_span(middle: list[int], strength: float, encoder: TokenEncoder, rng: np.random.Generator) -> list[int]:
    length = min(len(middle) - 1, max(1, round(strength * len(middle))))
    start = int(rng.integers(len(middle) - length + 1))
    return [*middle[:start], *[encoder.mask_token] * length, *middle[start + length :]]


METHODS: dict[AugmentationKind, Method] = {
    "token_dropout": MiddleTokens(_drop),
    "span_mask": MiddleTokens(_mask_span),
    "embedding_noise": EmbeddingNoise(),
}
