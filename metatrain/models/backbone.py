"""A frozen model as a pure function of (delta, batch): hidden states or pooled features, sites for deltas, and base updates.

The backbone does not know what its inputs are: a batch carries the tensors that the model is called with.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metatrain.deltas import Delta, DeltaKind, build, delta_scope
from metatrain.deltas.scope import current_noise
from metatrain.deltas.virtual import with_prompt
from metatrain.models.split_model import lower_part, upper_part

log = logging.getLogger(__name__)
Attention = Literal["auto", "sdpa", "eager"]
Pooling = Literal["mean", "cls"]


@dataclass(frozen=True)
class Bucket:
    """Rows of like length of each of G groups, group-major, padded to the longest.

    `inputs`: what the model is called with, each [B, L, …]. `mask` [B, L]: 1 for a real token. `rows` [B]: where the rows stand in
    the caller's order. `noise` [B, L, D], if any, is added to the word embeddings. `below` [B, L, D], if any, are the hidden
    states that enter `upper`, the rest of the model: what lies below is not computed again.
    """

    inputs: dict[str, Tensor]
    mask: Tensor
    rows: Tensor
    noise: Tensor | None = None
    below: Tensor | None = None
    upper: nn.Module | None = None


@dataclass(frozen=True)
class Batch:
    """B rows in buckets of like length, so that little padding is computed. `pooling`: how features are made of hidden states."""

    buckets: tuple[Bucket, ...]
    pooling: Pooling


@dataclass(frozen=True)
class Hidden:
    """What the backbone makes of B rows with N real tokens in all, at least float32, in the caller's order.

    `features` [B, D]: pooled as the batch asks for, of length 1. `states` [N, D], row i from `offsets[i]` to `offsets[i + 1]`.
    """

    features: Tensor
    padded: tuple[tuple[Bucket, Tensor], ...]

    @property
    def states(self) -> Tensor:
        """The last hidden states of the real tokens, one row after the other, [N, D]."""
        by_row: dict[int, Tensor] = {}
        for bucket, states in self.padded:
            for place, row in enumerate(bucket.rows.tolist()):
                by_row[row] = states[place][bucket.mask[place].bool()]
        return torch.cat([by_row[row] for row in sorted(by_row)])

    @property
    def offsets(self) -> Tensor:
        """Where each row's states begin, and where the last one's end, [B + 1] int64."""
        lengths = {row: n for b, _ in self.padded for row, n in zip(b.rows.tolist(), b.mask.sum(1).tolist(), strict=True)}
        return torch.tensor([0, *(lengths[row] for row in sorted(lengths))]).cumsum(0)


class Backbone:
    """One resident model. Holds no delta: `hidden` takes it as an argument. Safe to call from several threads at once.

    `attention`: "eager" is needed where a second derivative is taken, for PyTorch's fused attention ("sdpa") has none.
    `sample` makes a batch of two rows of unequal length, on which a cut of the model is tried.
    """

    def __init__(self, model: nn.Module, *, attention: Attention, sample: Callable[[], Batch]) -> None:
        self.model = model.eval().requires_grad_(False)
        self.attention = attention
        self._sample = sample
        parameter = next(model.parameters())
        self.dtype, self.device = parameter.dtype, parameter.device
        self.hidden_size = int(cast(Any, model.config).hidden_size)
        self._attached: dict[Any, DeltaKind] = {}
        # (kind, site) of the hooks there are, kept with them: on a second backbone of one model a delta would act twice.
        self._hooked: set[tuple[str, str]] = vars(model).setdefault("_quickstudy_hooked", set())
        self._upper: dict[int, nn.Module | None] = {}
        self._cutting = threading.Lock()
        self._attaching = threading.Lock()
        embeddings = cast(Any, model).get_input_embeddings()
        if _add_noise not in embeddings._forward_hooks.values():
            embeddings.register_forward_hook(_add_noise)

    @property
    def precision(self) -> str:
        """The dtype of the weights, as recipes and adapters name it: `float32`, `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")

    def attach(self, config: Any) -> DeltaKind:
        """Return the delta kind of a `DeltaConfig` on this model; hook its sites the first time. Idempotent.

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

    def hidden(
        self,
        delta: Delta | None,
        batch: Batch,
        *,
        slots: Tensor | None = None,
        updated: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Hidden:
        """Run the model over a batch; differentiable in `delta` and in `updated`.

        `delta` is folded (`DeltaKind.fold`); None is the bare model. With `slots` [B], row i uses entry slots[i] of each leaf's
        leading axis; without, that axis has the batch's G groups and rows are group-major. `updated` stand in the place of the
        model's parameters of their names; such a call must not meet another in another thread.
        """
        padded = []
        for bucket in batch.buckets:
            of_rows = delta
            if delta is not None and slots is not None:
                index = slots[bucket.rows]
                of_rows = {name: leaf.index_select(0, index) for name, leaf in delta.items()}
            padded.append((bucket, self._states(of_rows, bucket, updated)))
        order = torch.cat([bucket.rows for bucket in batch.buckets]).argsort()
        features = torch.cat([pooled(states, bucket.mask, batch.pooling) for bucket, states in padded])[order]
        return Hidden(features, tuple(padded))

    def _states(self, delta: Delta | None, bucket: Bucket, updated: Mapping[str, Tensor]) -> Tensor:
        """The last hidden states of a bucket, at least float32, [B, L, D]."""
        with delta_scope(delta, bucket.noise):
            given = {**bucket.inputs, "attention_mask": bucket.mask}
            inputs, in_front = with_prompt(delta, given, lambda ids: self._embedded(ids, updated))
            if in_front or bucket.upper is None or not self._all_within(bucket.upper, updated):
                states: Tensor = self._call(self.model, updated, **inputs).last_hidden_state[:, in_front:]
            else:
                upper = self._call(bucket.upper, updated, inputs_embeds=bucket.below, attention_mask=bucket.mask)
                states = upper.last_hidden_state
        return states.to(torch.promote_types(states.dtype, torch.float32))

    def _call(self, module: nn.Module, updated: Mapping[str, Tensor], **inputs: Tensor | None) -> Any:
        """Call `module`, the model or a part of it, with what of `updated` is in it in the place of its own parameters."""
        if not updated:
            return module(**inputs)
        own = {parameter: name for name, parameter in module.named_parameters()}
        named = {self.model.get_parameter(name): new.to(self.dtype) for name, new in updated.items()}
        return functional_call(module, {own[p]: new for p, new in named.items() if p in own}, kwargs=inputs)

    def _all_within(self, part: nn.Module, updated: Mapping[str, Tensor]) -> bool:
        """Return True if no parameter below the part was updated: what was computed there stands."""
        if not updated:
            return True
        own = set(part.parameters())
        return all(self.model.get_parameter(name) in own for name in updated)

    def _embedded(self, ids: Tensor, updated: Mapping[str, Tensor]) -> Tensor:
        """The embeddings [B, L, D] of token ids [B, L]."""
        return cast(Tensor, self._call(cast(Any, self.model).get_input_embeddings(), updated, input=ids))

    @torch.no_grad()
    def below(self, batch: Batch, kind: DeltaKind) -> Batch:
        """Compute all that lies below the delta's lowest layer, for a batch that is gone through several times.

        Returns the batch as it is where the delta begins at the bottom, or where this model's parts do not make the whole.
        """
        layer = kind.lowest_layer
        upper = self._upper_part(layer) if layer else None
        return batch if upper is None else self._cut(batch, layer, upper)

    def _cut(self, batch: Batch, layer: int, upper: nn.Module) -> Batch:
        return replace(batch, buckets=tuple(self._with_below(bucket, layer, upper) for bucket in batch.buckets))

    def _with_below(self, bucket: Bucket, layer: int, upper: nn.Module) -> Bucket:
        with delta_scope(None, bucket.noise):
            below = lower_part(self.model, layer, {**bucket.inputs, "attention_mask": bucket.mask})
        return replace(bucket, below=below, upper=upper)

    def _upper_part(self, layer: int) -> nn.Module | None:
        """The model from `layer` up, if on two rows of unequal length the parts give the whole's features to the last bit."""
        with self._cutting:
            if layer not in self._upper:
                batch = self._sample()
                upper: nn.Module | None = None
                try:
                    upper = upper_part(self.model, layer)
                    parts, whole = self.hidden(None, self._cut(batch, layer, upper)), self.hidden(None, batch)
                    same = torch.equal(parts.features, whole.features)
                except Exception as problem:  # any architecture may fail here in its own way; it is then used whole
                    log.info("%s is not cut below layer %d: %s", type(self.model).__name__, layer, problem)
                    same = False
                self._upper[layer] = upper if same else None
            return self._upper[layer]


def pooled(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Pool hidden states [B, L, D], at least float32, of real tokens `mask` [B, L] to features [B, D] of length 1."""
    if pooling == "cls":
        features = states[:, 0]
    else:
        weights = mask.unsqueeze(-1).to(states.dtype)
        features = (states * weights).sum(1) / weights.sum(1)
    return nn.functional.normalize(features, dim=-1)


def _add_noise(_embeddings: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    noise = current_noise()
    return None if noise is None else output + noise
