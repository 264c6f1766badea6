"""A frozen Hugging Face text encoder as a pure function of (delta, batch)."""

import fnmatch
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from metatrain.deltas import Delta, DeltaKind, build, delta_scope
from metatrain.deltas.scope import current_noise
from metatrain.deltas.virtual import PROMPT, PROMPT_TOKENS, real
from metatrain.errors import BaseModelError
from metatrain.models import source
from metatrain.models.cut import lower_part, upper_part
from metatrain.models.precision import Precision, default_device, resolve

log = logging.getLogger(__name__)

Attention = Literal["auto", "sdpa", "eager"]
_LOCAL: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
"""A folder is all that is read; code in it is never run, and what it does not have is not looked for elsewhere."""


class BaseSpec(BaseModel):
    """What identifies a base model and its preprocessing; part of every artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    weights_sha256: str
    tokenizer_sha256: str
    pooling: Literal["mean", "cls"]
    max_length: int = Field(ge=8)


@dataclass(frozen=True)
class Bucket:
    """m rows of each of G groups, group-major, padded to the longest: `input_ids` and `attention_mask` [G·m, L] int64, and
    `rows` [G·m], where they stand in the caller's order. `noise` [G·m, L, D], if any, is added to the word embeddings. `prefix`
    [G·m, L, D], if any, are the hidden states that enter `upper`, the rest of the model: what lies below is not computed again."""

    input_ids: Tensor
    attention_mask: Tensor
    rows: Tensor
    noise: Tensor | None = None
    prefix: Tensor | None = None
    upper: nn.Module | None = None


@dataclass(frozen=True)
class TokenBatch:
    """B = G·M rows in buckets of like length, so that little padding is computed."""

    buckets: tuple[Bucket, ...]


class TextBase:
    """One resident text encoder. Holds no delta: `features` takes it as an argument.

    Safe to call from several threads at once. `attention`: "eager" is needed where a second derivative is taken, for PyTorch's
    fused attention ("sdpa") has none.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, spec: BaseSpec, *, attention: Attention) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.spec = spec
        self.attention = attention
        parameter = next(model.parameters())
        self.dtype, self.device = parameter.dtype, parameter.device
        self.hidden_size = int(cast(Any, model.config).hidden_size)
        self._attached: dict[Any, DeltaKind] = {}
        # (kind, site) of the hooks there are, kept with them: on a second TextBase of one model a delta would act twice.
        self._hooked: set[tuple[str, str]] = vars(model).setdefault("_quickstudy_hooked", set())
        self._upper: dict[int, nn.Module | None] = {}
        self._cutting = threading.Lock()
        self._attaching = threading.Lock()
        embeddings = cast(Any, model).get_input_embeddings()
        if _add_noise not in embeddings._forward_hooks.values():
            embeddings.register_forward_hook(_add_noise)

    @property
    def precision(self) -> str:
        """Of the base model, as recipes and adapters name it: `float32`, `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def mask_token(self) -> int:
        """What stands for a masked token: the mask token, or the unknown token of a tokenizer without one."""
        token = self.tokenizer.mask_token_id
        return int(self.tokenizer.unk_token_id if token is None else token)

    def attach(self, config: Any) -> DeltaKind:
        """The delta kind of a `DeltaConfig` on this model; hooks its sites the first time. Idempotent.

        Raises UnsupportedDelta where the model has no place for it.
        """
        with self._attaching:
            if config not in self._attached:
                kind = build(config, self.model)
                new = [site for site in kind.sites if (config.kind, site) not in self._hooked]
                kind.attach(new)
                self._hooked |= {(config.kind, site) for site in new}
                self._attached[config] = kind
            return self._attached[config]

    def parameters(self, patterns: Sequence[str]) -> dict[str, Tensor]:
        """Copies on the CPU, at least float32, of the parameters whose names match one of the shell patterns (`encoder.layer.5.*`).

        Raises BaseModelError for a pattern that matches none.
        """
        model = self.model
        if self.dtype == torch.bfloat16:  # what is learned starts from the parameters themselves, not from their rounding
            folder = source.locate(self.spec.model)
            model = AutoModel.from_pretrained(folder, **_LOCAL, use_safetensors=True, dtype=torch.float32)
        own = dict(model.named_parameters())
        for pattern in patterns:
            if not fnmatch.filter(own, pattern):
                raise BaseModelError(
                    f"base.updated: no parameter of {self.spec.model} matches {pattern!r}; one is {next(iter(own))}"
                )
        matched = [name for name in own if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
        kept = torch.promote_types(self.dtype, torch.float32)
        return {name: own[name].detach().clone().to("cpu", kept) for name in matched}

    def features(
        self,
        delta: Delta | None,
        batch: TokenBatch,
        slots: Tensor | None = None,
        updated: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Tensor:
        """L2-normalised pooled features [B, D], at least float32; differentiable in `delta` and in `updated`.

        `delta` is folded (`LoRA.fold`). With `slots` [B], row i uses entry slots[i] of each leaf's leading axis; without, that
        axis has the batch's G groups and rows are group-major. None is the bare base model. `updated` stand in the place of the
        model's parameters of their names; such a call must not meet another in another thread.
        """
        parts = []
        for bucket in batch.buckets:
            of_rows = delta
            if delta is not None and slots is not None:
                index = slots[bucket.rows]
                of_rows = {name: leaf.index_select(0, index) for name, leaf in delta.items()}
            parts.append(self._bucket_features(of_rows, bucket, updated))
        order = torch.cat([bucket.rows for bucket in batch.buckets]).argsort()
        return torch.cat(parts)[order]

    def _bucket_features(self, delta: Delta | None, bucket: Bucket, updated: Mapping[str, Tensor]) -> Tensor:
        mask = bucket.attention_mask
        with delta_scope(delta, bucket.noise):
            if delta is not None and PROMPT in delta:
                return self.pooled(self._prompted(delta, bucket, updated), mask)
            if bucket.upper is None or not self._all_within(bucket.upper, updated):
                output = self._call(self.model, updated, input_ids=bucket.input_ids, attention_mask=bucket.attention_mask)
            else:
                output = self._call(bucket.upper, updated, inputs_embeds=bucket.prefix, attention_mask=bucket.attention_mask)
        return self.pooled(cast(Tensor, output.last_hidden_state), mask)

    def _call(self, module: nn.Module, updated: Mapping[str, Tensor], **inputs: Tensor | None) -> Any:
        """`module`, the model or a part of it, with what of `updated` is in it in the place of its own parameters."""
        if not updated:
            return module(**inputs)
        own = {parameter: name for name, parameter in module.named_parameters()}
        named = {self.model.get_parameter(name): new.to(self.dtype) for name, new in updated.items()}
        return functional_call(module, {own[p]: new for p, new in named.items() if p in own}, kwargs=inputs)

    def _all_within(self, part: nn.Module, updated: Mapping[str, Tensor]) -> bool:
        """No parameter that lies below the part was updated: what was computed there stands."""
        if not updated:
            return True
        own = set(part.parameters())
        return all(self.model.get_parameter(name) in own for name in updated)

    def _prompted(self, delta: Delta, bucket: Bucket, updated: Mapping[str, Tensor]) -> Tensor:
        """The last hidden states of the words [B, L, D] with the prompts [G, P, D] in front of them."""
        prompt, counts = delta[PROMPT], delta.get(PROMPT_TOKENS)
        rows, tokens = bucket.input_ids.shape[0], prompt.shape[1]
        words = self._call(cast(Any, self.model).get_input_embeddings(), updated, input=bucket.input_ids)
        front = prompt.to(words.dtype).repeat_interleave(rows // prompt.shape[0], dim=0)
        mask = nn.functional.pad(bucket.attention_mask, (tokens, 0), value=1)
        if counts is not None:
            mask[:, :tokens] = real(counts, tokens)
        output = self._call(self.model, updated, inputs_embeds=torch.cat([front, words], dim=1), attention_mask=mask)
        return cast(Tensor, output.last_hidden_state)[:, tokens:]

    def pooled(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Hidden states [B, L, D] → normalised features [B, D]."""
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        if self.spec.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * mask).sum(1) / mask.sum(1)
        return nn.functional.normalize(pooled, dim=-1)

    @torch.no_grad()
    def prefix(self, batch: TokenBatch, kind: DeltaKind) -> TokenBatch:
        """The same batch with all that lies below the delta's lowest layer computed, for one that is gone through several times. As
        it is where the delta begins at the bottom, or where this model's parts do not make the whole."""
        layer = kind.lowest_layer
        upper = self._upper_part(layer) if layer else None
        return batch if upper is None else self._cut(batch, layer, upper)

    def _cut(self, batch: TokenBatch, layer: int, upper: nn.Module) -> TokenBatch:
        return TokenBatch(tuple(self._with_prefix(bucket, layer, upper) for bucket in batch.buckets))

    def _with_prefix(self, bucket: Bucket, layer: int, upper: nn.Module) -> Bucket:
        with delta_scope(None, bucket.noise):
            hidden = lower_part(self.model, layer, {"input_ids": bucket.input_ids, "attention_mask": bucket.attention_mask})
        return replace(bucket, prefix=hidden, upper=upper)

    def _upper_part(self, layer: int) -> nn.Module | None:
        """The model from `layer` up, if on two rows of unequal length the parts give the whole's features to the last bit."""
        with self._cutting:
            if layer not in self._upper:
                batch = self.collate(self.encode(["a", "some words of a longer row, which pads the other one"])[0])
                upper: nn.Module | None = None
                try:
                    upper = upper_part(self.model, layer)
                    same = torch.equal(self.features(None, self._cut(batch, layer, upper)), self.features(None, batch))
                except Exception as problem:  # any architecture may fail here in its own way; it is then used whole
                    log.info("%s is not cut below layer %d: %s", type(self.model).__name__, layer, problem)
                    same = False
                self._upper[layer] = upper if same else None
            return self._upper[layer]

    def encode(self, texts: Sequence[str], max_length: int | None = None) -> tuple[list[list[int]], list[bool]]:
        """Token ids of each text, cut to the maximum length, and whether it was cut."""
        ids: list[list[int]] = self.tokenizer(list(texts), truncation=False, padding=False, verbose=False)["input_ids"]
        limit = min(max_length or self.spec.max_length, self.spec.max_length)
        cut = [len(row) > limit for row in ids]
        return [row if len(row) <= limit else [*row[: limit - 1], row[-1]] for row in ids], cut

    def collate(
        self, ids: Sequence[Sequence[int]], groups: int = 1, noise: Mapping[int, NDArray[np.float32]] | None = None
    ) -> TokenBatch:
        """Token ids of B rows in `groups` groups (group-major) → a batch on the model's device.

        An empty row stands for padding: it becomes one padding token that is attended to, so its features stay finite. `noise`:
        what is added to the word embeddings of a row, [its length, D].
        """
        pad = int(self.tokenizer.pad_token_id)
        rows = [list(row) or [pad] for row in ids]
        width = len(rows) // groups
        by_length = [sorted(range(g * width, (g + 1) * width), key=lambda i: len(rows[i]), reverse=True) for g in range(groups)]
        longest = [max(len(rows[ranked[rank]]) for ranked in by_length) for rank in range(width)]
        buckets: list[Bucket] = []
        for start, stop in _like_lengths(longest, groups, _LEAST_BUCKET_TOKENS.get(self.dtype, 96)):
            members = [i for ranked in by_length for i in ranked[start:stop]]
            length = longest[start]
            input_ids = torch.tensor([rows[i] + [pad] * (length - len(rows[i])) for i in members])
            mask = torch.tensor([[1] * len(rows[i]) + [0] * (length - len(rows[i])) for i in members])
            added = None if noise is None else self._padded_noise(noise, members, length)
            buckets.append(
                Bucket(input_ids.to(self.device), mask.to(self.device), torch.tensor(members, device=self.device), added)
            )
        return TokenBatch(tuple(buckets))

    def _padded_noise(self, noise: Mapping[int, NDArray[np.float32]], members: Sequence[int], length: int) -> Tensor:
        padded = torch.zeros(len(members), length, self.hidden_size)
        for place, row in enumerate(members):
            if row in noise:
                padded[place, : len(noise[row])] = torch.from_numpy(noise[row])
        return padded.to(self.device, self.dtype)


def _add_noise(_embeddings: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    noise = current_noise()
    return None if noise is None else output + noise


_LEAST_BUCKET_TOKENS = {torch.float32: 96, torch.bfloat16: 384}  # below, one more pass costs more than the padding it saves


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


def load_text_base(
    name: str = source.DEFAULT_MODEL,
    *,
    precision: Precision = "auto",
    attention: Attention = "auto",
    device: torch.device | None = None,
    max_length: int | None = None,
    hub: source.Hub = source.Hub(),
) -> TextBase:
    """Load a text encoder by hub name or local path, frozen. Raises BaseModelError where it cannot be found or trusted.

    attention="auto" is the faster one: "sdpa", but "eager" in bfloat16 on a CPU, where the backward pass of PyTorch's fused
    attention takes more time than all the rest together (docs/decisions/0005).
    """
    cast(Any, transformers_logging).disable_progress_bar()
    device = device or default_device()
    dtype = resolve(precision, device)
    if attention == "auto":
        attention = "eager" if device.type == "cpu" and dtype == torch.bfloat16 else "sdpa"
    folder = source.locate(name, hub)
    digest = source.weights_digest(folder)
    source.check_known_weights(name, digest)
    pooling, stated_length = source.sentence_transformers_settings(folder)
    try:
        config = AutoConfig.from_pretrained(folder, **_LOCAL)
        tokenizer = AutoTokenizer.from_pretrained(folder, **_LOCAL, use_fast=True)
        model = AutoModel.from_pretrained(
            folder, **_LOCAL, config=config, use_safetensors=True, attn_implementation=attention, dtype=dtype
        )
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"base.model: {folder} does not load as a text encoder: {str(error).splitlines()[0]}") from error
    # Some tables hold places for padding as well (RoBERTa), which the tokenizer's own limit knows; the probe tries the longest row.
    positions = min(getattr(config, "max_position_embeddings", 512), tokenizer.model_max_length)
    spec = BaseSpec(
        model=name,
        weights_sha256=digest,
        tokenizer_sha256=source.tokenizer_digest(folder),
        pooling=cast(Literal["mean", "cls"], pooling),
        max_length=min(max_length or stated_length or positions, positions),
    )
    return TextBase(model.to(device), tokenizer, spec, attention=attention)
