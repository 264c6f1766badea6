"""Texts as inputs of an encoder: a tokenizer, a maximum length and a pooling."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from metatrain.models.backbone import Batch, Bucket, Pooling
from metatrain.models.inputs.augment import METHODS, Augmentation
from metatrain.models.spec import Spec

_SAMPLE = (
    "short",
    "a row of middling length, with some words",
    "and the longest row of the three, which pads both of the others out",
)
_LEAST_BUCKET_TOKENS = {torch.float32: 96, torch.bfloat16: 384}  # below, one more pass costs more than the padding it saves


class TextSpec(Spec):
    """What identifies a text encoder and its preprocessing; part of every artifact."""

    tokenizer_sha256: str
    pooling: Pooling
    max_length: int = Field(ge=8)


@dataclass(frozen=True)
class TextRow:
    """One text as token ids; its length is its cost. `truncated`: it was cut. `noise` [L, D], if any, is added to embeddings."""

    ids: Sequence[int]
    truncated: bool = False
    noise: NDArray[np.float32] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.ids)


class TextInputs:
    """`metatrain.models.inputs.Inputs` of texts. `width` D, `device` and `dtype` are the backbone's."""

    def __init__(self, tokenizer: Any, spec: TextSpec, *, width: int, device: torch.device, dtype: torch.dtype) -> None:
        self.tokenizer, self.spec = tokenizer, spec
        self.width, self.device, self.dtype = width, device, dtype

    @property
    def mask_token(self) -> int:
        """What stands for a masked token: the mask token, or the unknown token of a tokenizer without one."""
        token = self.tokenizer.mask_token_id
        return int(self.tokenizer.unk_token_id if token is None else token)

    def encode(self, raw: Sequence[str], max_length: int | None = None) -> list[TextRow]:
        """Tokenize texts; cut those that are longer than the maximum length, of the spec or a shorter one."""
        ids: list[list[int]] = self.tokenizer(list(raw), truncation=False, padding=False, verbose=False)["input_ids"]
        limit = min(max_length or self.spec.max_length, self.spec.max_length)
        return [TextRow(row) if len(row) <= limit else TextRow([*row[: limit - 1], row[-1]], truncated=True) for row in ids]

    def view(self, row: TextRow, augmentation: Augmentation, key: Sequence[int]) -> TextRow:
        """An augmented copy of a row, drawn by `key` alone."""
        method = METHODS[augmentation.kind]
        view = method.view(row.ids, augmentation.strength, self, key)
        return TextRow(view.ids, row.truncated, view.noise)

    def collate(self, rows: Sequence[TextRow | None], groups: int = 1) -> Batch:
        """Make a batch on the backbone's device of B rows in `groups` groups (group-major).

        None stands for padding: it becomes one padding token that is attended to, so its features stay finite.
        """
        pad = int(self.tokenizer.pad_token_id)
        ids = [[pad] if row is None else list(row.ids) or [pad] for row in rows]
        noise = {i: row.noise for i, row in enumerate(rows) if row is not None and row.noise is not None}
        width = len(ids) // groups
        by_length = [sorted(range(g * width, (g + 1) * width), key=lambda i: len(ids[i]), reverse=True) for g in range(groups)]
        longest = [max(len(ids[ranked[rank]]) for ranked in by_length) for rank in range(width)]
        buckets: list[Bucket] = []
        for start, stop in _like_lengths(longest, groups, _LEAST_BUCKET_TOKENS.get(self.dtype, 96)):
            members = [i for ranked in by_length for i in ranked[start:stop]]
            length = longest[start]
            input_ids = torch.tensor([ids[i] + [pad] * (length - len(ids[i])) for i in members])
            mask = torch.tensor([[1] * len(ids[i]) + [0] * (length - len(ids[i])) for i in members])
            added = self._padded_noise(noise, members, length) if noise else None
            where = torch.tensor(members, device=self.device)
            buckets.append(Bucket({"input_ids": input_ids.to(self.device)}, mask.to(self.device), where, added))
        return Batch(tuple(buckets), self.spec.pooling)

    @property
    def limit(self) -> str:
        return f"{self.spec.max_length} tokens"

    def sample(self) -> list[TextRow]:
        return self.encode(_SAMPLE)

    def longest(self) -> TextRow:
        return self.encode([_SAMPLE[-1] * self.spec.max_length])[0]

    def _padded_noise(self, noise: Mapping[int, NDArray[np.float32]], members: Sequence[int], length: int) -> Tensor:
        padded = torch.zeros(len(members), length, self.width)
        for place, row in enumerate(members):
            if row in noise:
                padded[place, : len(noise[row])] = torch.from_numpy(noise[row])
        return padded.to(self.device, self.dtype)


def _like_lengths(longest: Sequence[int], groups: int, least: int) -> list[tuple[int, int]]:
    """Cut ranks of falling length into [start, stop) runs: a new one begins where a row is under 4/5 of the run's longest."""
    cuts = [0]
    for rank, length in enumerate(longest):
        start = cuts[-1]
        enough = (rank - start) * groups * longest[start] >= least
        remaining = sum(longest[rank:]) * groups >= least
        if enough and remaining and length < 0.8 * longest[start]:
            cuts.append(rank)
    return list(zip(cuts, [*cuts[1:], len(longest)], strict=True))
