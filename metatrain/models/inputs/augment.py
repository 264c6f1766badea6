"""Augmented views of a support set: more rows of the same meaning, made without another model.

    token_dropout     each inner token is dropped with probability `strength`
    span_mask         one run of `strength` of the inner tokens is replaced by the mask token
    embedding_noise   Uniform(−1, 1) · strength / √(L·D) is added to each token embedding (Jain et al. 2023, arXiv:2310.05914)

The first and last token (the specials of an encoder) and at least one inner token always stay. Every draw depends on (seed, row)
alone, so a task sees the same views whatever tasks it is adapted with.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

AugmentationKind = Literal["token_dropout", "span_mask", "embedding_noise"]


class Augmentation(BaseModel):
    """`views` rows for each example, the first as it is. Used where a class has at most `up_to_shots` examples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: AugmentationKind
    strength: float = Field(gt=0, description="a share of the tokens in (0, 1), or the noise's alpha")
    views: int = Field(default=2, ge=2, le=8)
    up_to_shots: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _a_share_is_a_share(self) -> "Augmentation":
        if self.kind != "embedding_noise" and self.strength >= 1:
            raise ValueError(f"strength: expected a share of the tokens below 1 for {self.kind}, got {self.strength:g}")
        return self


def token_view(ids: Sequence[int], kind: AugmentationKind, strength: float, mask: int, seed: Sequence[int]) -> list[int]:
    """One augmented copy of a row's token ids; an empty row (padding) stays empty."""
    inner = list(ids[1:-1])
    if len(inner) < 2 or kind == "embedding_noise":
        return list(ids)
    rng = np.random.default_rng(seed)
    if kind == "token_dropout":
        keep = rng.random(len(inner)) >= strength
        if not keep.any():
            keep[rng.integers(len(inner))] = True
        inner = [token for token, kept in zip(inner, keep.tolist(), strict=True) if kept]
    else:
        length = min(len(inner) - 1, max(1, round(strength * len(inner))))
        start = int(rng.integers(len(inner) - length + 1))
        inner[start : start + length] = [mask] * length
    return [ids[0], *inner, ids[-1]]


def embedding_noise(length: int, width: int, alpha: float, seed: Sequence[int]) -> NDArray[np.float32]:
    """[length, width] float32."""
    rng = np.random.default_rng(seed)
    noise: NDArray[np.float32] = (rng.uniform(-1, 1, (length, width)) * alpha / np.sqrt(length * width)).astype(np.float32)
    return noise
