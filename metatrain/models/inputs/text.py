"""The encoding of texts: tokenization, truncation, and batches in buckets of similar length."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from metatrain.errors import BaseModelError
from metatrain.models.batch import Batch, Bucket, Pack
from metatrain.models.inputs.augment import METHODS, Augmentation
from metatrain.models.inputs.seen import Seen
from metatrain.models.modules import ModuleSpec
from metatrain.models.pooling import FeatureModule, Pooler, Pooling
from metatrain.models.spec import Spec

_SAMPLE = (
    "short",
    "a row of middling length, with some words",
    "and the longest row of the three, which pads both of the others out",
)
SHORTEST_LIMIT = 8
"""The smallest maximum length of a row, in tokens."""
_TEXTS_AT_ONCE = 256
"""How many texts the tokenizer gets in one call. This bounds its memory, which is more than a hundred bytes for each token."""
_CHARS_PER_TOKEN = 6
_MARGIN_CHARS = 100
_MARGIN_WORDS = 4
"""See `_settled`: the words of a text's beginning that may depend on what follows it."""
_PACK_TOKENS = 2048
"""The largest number of tokens in a pack. The states of more tokens than this do not stay in the processor's cache."""
# The minimum number of tokens in a bucket. Each bucket is one more forward pass, so a smaller bucket costs more than the padding
# that it saves.
_MIN_BUCKET_TOKENS = {torch.float32: 96, torch.bfloat16: 384}


class TextSpec(Spec):
    """The spec that identifies a text encoder: weights, tokenizer, pooling and maximum length in tokens.

    Every initialization for a text encoder contains this spec. `modules`: what changes the features after the pooling. `prompt`:
    the text before every input. `pool_prompt`: False if the prompt's tokens are not pooled. `lower_case`: True if texts are
    converted to lower case before the tokenizer's own normalisation. `closing_tokens`: how many of the text's last tokens a
    truncated row ends with. `settings_sha256`: the digest of the settings of model and tokenizer; None for a base model that
    needs none of these fields and is pooled by mean or cls, because earlier versions knew such base models without it.
    """

    tokenizer_sha256: str
    pooling: Pooling
    max_length: int = Field(ge=SHORTEST_LIMIT)
    modules: tuple[ModuleSpec, ...] = ()
    prompt: str = ""
    pool_prompt: bool = True
    lower_case: bool = False
    closing_tokens: int = Field(default=1, ge=0)
    settings_sha256: str | None = None


@dataclass(frozen=True)
class TextRow:
    """One text as token ids. `noise` [L, D], if any, is added to the token embeddings."""

    ids: Sequence[int]
    truncated: bool = False
    noise: NDArray[np.float32] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.ids)


class TextInputs:
    """The encoder of texts, which implements `metatrain.models.inputs.Inputs`.

    `width` (D), `device` and `dtype` are those of the backbone. `modules`: those of `spec.modules`, with their parameters. Raises
    BaseModelError if the prompt leaves no room for a text.
    """

    def __init__(
        self,
        tokenizer: Any,
        spec: TextSpec,
        *,
        width: int,
        device: torch.device,
        dtype: torch.dtype,
        modules: Sequence[FeatureModule] = (),
    ) -> None:
        if len(modules) != len(spec.modules):
            raise ValueError(f"modules: expected the {len(spec.modules)} of the spec, got {len(modules)}")
        self.tokenizer, self.spec = tokenizer, spec
        self.width, self.device, self.dtype = width, device, dtype
        unknown = tokenizer.unk_token_id
        self._unknown_token = -1 if unknown is None else int(unknown)
        self._cuts_texts = tokenizer.is_fast and (not spec.closing_tokens or closing_tokens(tokenizer) > 0)
        self._prompt_tokens = _prompt_tokens(tokenizer, spec.prompt) if spec.prompt else 0
        self._check_room(spec.max_length)
        self._pooler = Pooler(spec.pooling, skipped_tokens=0 if spec.pool_prompt else self._prompt_tokens, modules=modules)

    @property
    def feature_size(self) -> int:
        """F, the number of features of a text."""
        return self._pooler.width(self.width)

    @property
    def mask_token(self) -> int:
        """The id of the mask token; without one, that of the unknown token or the padding token."""
        ids = (self.tokenizer.mask_token_id, self.tokenizer.unk_token_id)
        return next((int(token) for token in ids if token is not None), self._padding_token)

    @property
    def _padding_token(self) -> int:
        """The id of the padding token. Its value changes nothing, because padding is not attended to."""
        return int(self.tokenizer.pad_token_id or 0)

    def encode(self, raw: Sequence[str], max_length: int | None = None) -> list[TextRow]:
        """Tokenize texts behind the prompt, and truncate each row.

        A row has at most `max_length` tokens, or as many as the spec allows if that is less. A truncated row keeps its last
        `spec.closing_tokens` tokens. Raises BaseModelError if the prompt leaves no room for a text.
        """
        limit = min(max_length or self.spec.max_length, self.spec.max_length)
        self._check_room(limit)
        raw = [self.spec.prompt + text for text in raw] if self.spec.prompt else raw
        rows: list[TextRow] = []
        for start in range(0, len(raw), _TEXTS_AT_ONCE):
            rows += self._encode_batch(raw[start : start + _TEXTS_AT_ONCE], limit)
        return rows

    def _check_room(self, limit: int) -> None:
        if self._prompt_tokens and self._prompt_tokens + self.spec.closing_tokens >= limit:
            raise BaseModelError(
                f"base.model: the prompt takes {self._prompt_tokens} of {limit} tokens, which leaves none for a text; expected a "
                "longer maximum length"
            )

    def _truncated(self, ids: Sequence[int], limit: int) -> list[int]:
        kept = len(ids) - self.spec.closing_tokens
        return [*ids[: limit - self.spec.closing_tokens], *ids[kept:]]

    def _encode_batch(self, texts: Sequence[str], limit: int) -> list[TextRow]:
        """Encode texts of which only as many characters are read as `limit` tokens need.

        Long texts are first cut to a beginning, which is doubled until its first `limit` tokens cannot depend on the rest. A
        tokenizer gets whole texts if a truncated row ends with a token of the text itself.
        """
        rows: dict[int, TextRow] = {}
        chars = _CHARS_PER_TOKEN * limit + _MARGIN_CHARS
        left = list(range(len(texts)))
        while left:
            cut = [len(texts[i]) > chars and self._cuts_texts for i in left]
            beginnings = [texts[i][:chars] if is_cut else texts[i] for i, is_cut in zip(left, cut, strict=True)]
            encoded = self.tokenizer(beginnings, truncation=False, padding=False, verbose=False)
            for at, (i, is_cut) in enumerate(zip(left, cut, strict=True)):
                ids: list[int] = encoded["input_ids"][at]
                if is_cut and _settled(encoded.encodings[at], chars) < limit:
                    continue
                # The last tokens of a beginning are the closing tokens, as of the whole text.
                rows[i] = TextRow(ids) if len(ids) <= limit else TextRow(self._truncated(ids, limit), truncated=True)
            left = [i for i in left if i not in rows]
            chars *= 2
        return [rows[i] for i in range(len(texts))]

    def is_empty(self, row: TextRow) -> bool:
        """Return True if a text left no token, so that its row is that of the empty text."""
        return len(row) == len(self._empty_ids) and list(row.ids) == self._empty_ids

    def seen(self, row: TextRow) -> Seen:
        """Return what the model sees of a text, without the tokens that even the empty text has."""
        ids = tuple(row.ids)
        if self.is_empty(row):
            return Seen(ids, tokens=0)
        unknown = ids.count(self._unknown_token) - self._empty_ids.count(self._unknown_token)
        return Seen(ids, max(1, len(ids) - len(self._empty_ids)), max(0, unknown), row.truncated)

    @cached_property
    def _empty_ids(self) -> list[int]:
        return list(self.encode([""])[0].ids)

    def view(self, row: TextRow, augmentation: Augmentation, key: Sequence[int]) -> TextRow:
        """Return a randomly augmented copy of a row. `key` seeds the random draw and fully determines it.

        The prompt is not changed.
        """
        kept = max(0, self._prompt_tokens - 1)  # a method keeps the first token itself
        view = METHODS[augmentation.kind].view(row.ids[kept:], augmentation.strength, self, key)
        noise = view.noise if view.noise is None or not kept else np.pad(view.noise, ((kept, 0), (0, 0)))
        return TextRow([*row.ids[:kept], *view.ids] if kept else view.ids, row.truncated, noise)

    def collate(self, rows: Sequence[TextRow | None], groups: int = 1, *, packed: bool = False) -> Batch:
        """Combine B rows into a batch on the backbone's device.

        `groups`: the number of groups of equal size into which `rows` is divided; the rows of a group are consecutive. A row of
        None becomes one padding token that is attended to, so that its features are finite. `packed`: combine the real tokens of
        the rows in packs of at most `_PACK_TOKENS`; otherwise pad the rows in buckets of similar length. A single row has no
        padding, and is computed faster as a bucket.
        """
        pad = self._padding_token
        ids = [[pad] if row is None else list(row.ids) or [pad] for row in rows]
        noise = {i: row.noise for i, row in enumerate(rows) if row is not None and row.noise is not None}
        parts = self._packs(ids, noise, groups) if packed and len(rows) > 1 else self._buckets(ids, noise, groups)
        return Batch(tuple(parts), self._pooler)

    def _packs(self, ids: Sequence[list[int]], noise: Mapping[int, NDArray[np.float32]], groups: int) -> Iterator[Pack]:
        each = len(ids) // groups
        for first, end in _pack_bounds([len(row) for row in ids]):
            some = ids[first:end]
            lengths, tokens = tuple(map(len, some)), torch.tensor(list(itertools.chain.from_iterable(some)), device=self.device)
            added = [torch.from_numpy(noise[i]) if i in noise else torch.zeros(len(ids[i]), self.width) for i in range(first, end)]
            yield Pack(
                ids=tokens,
                lengths=lengths,
                rows=torch.arange(first, end, device=self.device),
                groups=tuple(i // each for i in range(first, end)),
                noise=torch.cat(added).unsqueeze(0).to(self.device, self.dtype) if noise else None,
            )

    def _buckets(self, ids: Sequence[list[int]], noise: Mapping[int, NDArray[np.float32]], groups: int) -> Iterator[Bucket]:
        pad, width = self._padding_token, len(ids) // groups
        by_length = [sorted(range(g * width, (g + 1) * width), key=lambda i: len(ids[i]), reverse=True) for g in range(groups)]
        longest = [max(len(ids[ranked[rank]]) for ranked in by_length) for rank in range(width)]
        for start, stop in _bucket_bounds(longest, groups, _MIN_BUCKET_TOKENS.get(self.dtype, 96)):
            members = [i for ranked in by_length for i in ranked[start:stop]]
            length = longest[start]
            input_ids = torch.tensor([ids[i] + [pad] * (length - len(ids[i])) for i in members])
            mask = torch.tensor([[1] * len(ids[i]) + [0] * (length - len(ids[i])) for i in members])
            added = self._padded_noise(noise, members, length) if noise else None
            row_indices = torch.tensor(members, device=self.device)
            yield Bucket({"input_ids": input_ids.to(self.device)}, mask.to(self.device), row_indices, added)

    @property
    def limit(self) -> str:
        return f"{self.spec.max_length} tokens"

    def sample(self) -> list[TextRow]:
        return self.encode(_SAMPLE)

    def longest(self, at_most: int) -> TextRow:
        return self.encode([_SAMPLE[-1] * min(at_most, self.spec.max_length)], at_most)[0]

    def _padded_noise(self, noise: Mapping[int, NDArray[np.float32]], members: Sequence[int], length: int) -> Tensor:
        padded = torch.zeros(len(members), length, self.width)
        for position, row in enumerate(members):
            if row in noise:
                padded[position, : len(noise[row])] = torch.from_numpy(noise[row])
        return padded.to(self.device, self.dtype)


def closing_tokens(tokenizer: Any) -> int:
    """Return the number of special tokens with which a tokenizer ends every row.

    `tokenizer`: a fast one. Those written in Python cannot say which tokens are special and which words they come from.
    """
    special: list[int] = tokenizer(["a"], truncation=False, padding=False, verbose=False).encodings[0].special_tokens_mask
    return special[::-1].index(0) if 0 in special else min(1, len(special))


def _prompt_tokens(tokenizer: Any, prompt: str) -> int:
    """Return the number of tokens of a prompt alone, without a special token at its end.

    sentence-transformers counts them in this way.
    """
    ids = tokenizer([prompt], truncation=False, padding=False, verbose=False)["input_ids"][0]
    return len(ids) - (bool(ids) and ids[-1] in tokenizer.all_special_ids)


def _settled(encoding: Any, chars: int) -> int:
    """Return how many first tokens of a text's beginning are also those of the whole text.

    `encoding`: the tokens of the text's first `chars` characters. A tokenizer splits a text into words and then tokenizes each
    word by itself. Words near the cut may change with what follows: a word may continue, a special token such as `[SEP]` may be
    complete only then, and normalization may reorder combining characters. So words that reach into the last `_MARGIN_CHARS`
    characters are not settled, and neither are the last `_MARGIN_WORDS` words. Words count as a whole, because one that is too
    long for the tokenizer becomes a single unknown token.
    """
    words: list[int | None] = encoding.word_ids
    distinct = [word for word in dict.fromkeys(words) if word is not None]
    if len(distinct) <= _MARGIN_WORDS:
        return 0
    near = [
        word for word, (_, end) in zip(words, encoding.offsets, strict=True) if word is not None and end > chars - _MARGIN_CHARS
    ]
    return words.index(min([*near[:1], distinct[-_MARGIN_WORDS]]))


def _pack_bounds(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Divide rows into packs of at most `_PACK_TOKENS` tokens, or of one longer row.

    Returns the rows of each pack as a range [first, end).
    """
    firsts, tokens = [0], 0
    for i, length in enumerate(lengths):
        if tokens and tokens + length > _PACK_TOKENS:
            firsts.append(i)
            tokens = 0
        tokens += length
    return list(zip(firsts, [*firsts[1:], len(lengths)], strict=True))


def _bucket_bounds(longest: Sequence[int], groups: int, min_tokens: int) -> list[tuple[int, int]]:
    """Divide the rows of all groups into buckets of similar length.

    The rows of each group are ranked by length, longest first. Returns the ranks of each bucket as a range [start, stop).
    `longest`: for each rank, the length of the longest row with this rank in any group. A new bucket begins at the first rank whose
    length is below 4/5 of the longest row in the current bucket, if the rows before and after it have at least `min_tokens` tokens.
    """
    starts = [0]
    for rank, length in enumerate(longest):
        start = starts[-1]
        enough = (rank - start) * groups * longest[start] >= min_tokens
        remaining = sum(longest[rank:]) * groups >= min_tokens
        if enough and remaining and length < 0.8 * longest[start]:
            starts.append(rank)
    return list(zip(starts, [*starts[1:], len(longest)], strict=True))
