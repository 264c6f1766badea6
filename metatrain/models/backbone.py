"""A frozen model as a pure function: (delta, batch) → hidden states and pooled features.

The backbone is independent of the modality: a batch carries the tensors that the model is called with.
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
from torch.utils.checkpoint import checkpoint

from metatrain.deltas import Delta, DeltaKind, build, delta_scope
from metatrain.deltas.scope import current_noise
from metatrain.deltas.virtual import prepend_prompt
from metatrain.models.split_model import lower_part, upper_part

log = logging.getLogger(__name__)
Attention = Literal["auto", "sdpa", "eager"]
Pooling = Literal["mean", "cls"]


@dataclass(frozen=True)
class Bucket:
    """Rows of similar length from each of G groups, group-major, padded to the longest.

    `inputs`: the arguments of the model, each [B, L, …]. `mask` [B, L]: 1 for a real token. `rows` [B]: the index of each row
    in the caller's order. `noise` [B, L, D], if any, is added to the word embeddings. `lower_states` [B, L, D], if any, are
    precomputed hidden states, from which only `upper`, the upper part of the model, has to run.
    """

    inputs: dict[str, Tensor]
    mask: Tensor
    rows: Tensor
    noise: Tensor | None = None
    lower_states: Tensor | None = None
    upper: nn.Module | None = None

    def parts(self, groups: int, most: int) -> list["Bucket"]:
        """Return the same rows in parts of at most `most` rows, or one row of each group where that is more."""
        each = len(self.rows) // groups
        columns = torch.split(torch.arange(each, device=self.rows.device), max(1, most // groups))
        firsts = each * torch.arange(groups, device=self.rows.device).unsqueeze(1)
        return [self._rows((firsts + some).flatten()) for some in columns]

    def _rows(self, index: Tensor) -> "Bucket":
        noise, lower = (None if tensor is None else tensor[index] for tensor in (self.noise, self.lower_states))
        inputs = {name: tensor[index] for name, tensor in self.inputs.items()}
        return replace(self, inputs=inputs, mask=self.mask[index], rows=self.rows[index], noise=noise, lower_states=lower)


@dataclass(frozen=True)
class Batch:
    """B rows in buckets of similar length, which saves computation on padding.

    `pooling`: how hidden states are pooled to features.
    """

    buckets: tuple[Bucket, ...]
    pooling: Pooling

    @property
    def size(self) -> int:
        """The number of rows, B."""
        return sum(len(bucket.rows) for bucket in self.buckets)


@dataclass(frozen=True)
class Hidden:
    """The output of the backbone for B rows with N real tokens in total.

    All of it is at least float32, and rows are in the caller's order.
    `features` [B, D]: pooled as `Batch.pooling` says, of length 1. `states` [N, D]: row i is at `offsets[i]` to `offsets[i + 1]`.
    `padded`: each bucket with its hidden states [B, L, D].
    """

    features: Tensor
    padded: tuple[tuple[Bucket, Tensor], ...]

    @property
    def states(self) -> Tensor:
        """The last hidden states of the real tokens, one row after the other, [N, D]."""
        by_row: dict[int, Tensor] = {}
        for bucket, states in self.padded:
            for position, row in enumerate(bucket.rows.tolist()):
                by_row[row] = states[position][bucket.mask[position].bool()]
        return torch.cat([by_row[row] for row in sorted(by_row)])

    @property
    def offsets(self) -> Tensor:
        """The index in `states` where each row begins, and the end of the last row, [B + 1] int64."""
        lengths = {row: n for b, _ in self.padded for row, n in zip(b.rows.tolist(), b.mask.sum(1).tolist(), strict=True)}
        return torch.tensor([0, *(lengths[row] for row in sorted(lengths))]).cumsum(0)


class Backbone:
    """One resident model. It holds no delta: `hidden` takes it as an argument. Thread-safe.

    `attention`: second derivatives need "eager", because PyTorch's fused attention ("sdpa") has none. `sample` returns a batch of
    two rows of unequal length, which `below` uses to check a split of the model.
    """

    def __init__(self, model: nn.Module, *, attention: Attention, sample: Callable[[], Batch]) -> None:
        self.model = model.eval().requires_grad_(False)
        self.attention = attention
        self._sample = sample
        parameter = next(model.parameters())
        self.dtype, self.device = parameter.dtype, parameter.device
        self.hidden_size = int(cast(Any, model.config).hidden_size)
        self._attached: dict[Any, DeltaKind] = {}
        # The hooks that the model has, as (kind, site). Kept on the model, so that a second backbone of it does not hook it again,
        # which would apply a delta twice.
        self._hooked: set[tuple[str, str]] = vars(model).setdefault("_quickstudy_hooked", set())
        self._upper: dict[int, nn.Module | None] = {}
        self._split_lock = threading.Lock()
        self._attach_lock = threading.Lock()
        embeddings = cast(Any, model).get_input_embeddings()
        if _add_noise not in embeddings._forward_hooks.values():
            embeddings.register_forward_hook(_add_noise)

    @property
    def precision(self) -> str:
        """The dtype of the weights as recipes and adapters name it: `float32` or `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")

    def attach(self, config: Any) -> DeltaKind:
        """Return the delta kind of a `DeltaConfig` on this model, and hook its sites once.

        Repeated calls return the same object. Raises UnsupportedDelta if the delta does not fit the model.
        """
        with self._attach_lock:
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
        """Run the model on a batch. Differentiable in `delta` and in `updated`.

        `delta` is folded (`DeltaKind.fold`); None runs the bare model. With `slots` [B], row i uses entry slots[i] of each leaf's
        leading axis. Without `slots`, that axis has the batch's G groups, and rows are group-major. `updated` replace the model's
        parameters of the same names; a call with `updated` must not run at the same time as another call.
        """
        padded = []
        for bucket in batch.buckets:
            row_delta = delta
            if delta is not None and slots is not None:
                index = slots[bucket.rows]
                row_delta = {name: leaf.index_select(0, index) for name, leaf in delta.items()}
            padded.append((bucket, self._states(row_delta, bucket, updated)))
        order = torch.cat([bucket.rows for bucket in batch.buckets]).argsort()
        features = torch.cat([pooled(states, bucket.mask, batch.pooling) for bucket, states in padded])[order]
        return Hidden(features, tuple(padded))

    def features_recomputed(
        self, delta: Delta | None, batch: Batch, *, rows_at_once: int, updated: Mapping[str, Tensor] = MappingProxyType({})
    ) -> Tensor:
        """Return `hidden(…).features` with the graph of at most `rows_at_once` rows in memory at a time.

        Each part of the rows is computed again on the way back, as often as a derivative goes through it (gradient checkpointing,
        Chen et al. 2016, arXiv:1604.06174). Rows of a group that share a pass do not see each other, so that nothing else changes.
        """
        groups = next((len(leaf) for leaf in (delta or {}).values()), 1)
        parts = [part for bucket in batch.buckets for part in bucket.parts(groups, rows_at_once)]

        def features(part: Bucket) -> Tensor:
            return pooled(self._states(delta, part, updated), part.mask, batch.pooling)

        order = torch.cat([part.rows for part in parts]).argsort()
        found = [checkpoint(features, part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        return torch.cat(cast(list[Tensor], found))[order]

    def _states(self, delta: Delta | None, bucket: Bucket, updated: Mapping[str, Tensor]) -> Tensor:
        """Return the last hidden states of a bucket, [B, L, D], at least float32."""
        with delta_scope(delta, bucket.noise):
            arguments = {**bucket.inputs, "attention_mask": bucket.mask}
            inputs, prompt_length = prepend_prompt(delta, arguments, lambda ids: self._embed(ids, updated))
            if prompt_length or bucket.upper is None or not self._updates_only(bucket.upper, updated):
                states: Tensor = self._call(self.model, updated, **inputs).last_hidden_state[:, prompt_length:]
            else:
                upper = self._call(bucket.upper, updated, inputs_embeds=bucket.lower_states, attention_mask=bucket.mask)
                states = upper.last_hidden_state
        return states.to(torch.promote_types(states.dtype, torch.float32))

    def _call(self, module: nn.Module, updated: Mapping[str, Tensor], **inputs: Tensor | None) -> Any:
        """Call `module`, the model or a part of it, with its parameters replaced by those in `updated`.

        Entries of `updated` for parameters outside `module` are ignored.
        """
        if not updated:
            return module(**inputs)
        names = {parameter: name for name, parameter in module.named_parameters()}
        new_values = {self.model.get_parameter(name): new.to(self.dtype) for name, new in updated.items()}
        return functional_call(module, {names[p]: new for p, new in new_values.items() if p in names}, kwargs=inputs)

    def _updates_only(self, part: nn.Module, updated: Mapping[str, Tensor]) -> bool:
        """Return True if every updated parameter is in `part`, so that states precomputed below it are valid."""
        if not updated:
            return True
        parameters = set(part.parameters())
        return all(self.model.get_parameter(name) in parameters for name in updated)

    def _embed(self, ids: Tensor, updated: Mapping[str, Tensor]) -> Tensor:
        """Return the embeddings [B, L, D] of token ids [B, L]."""
        return cast(Tensor, self._call(cast(Any, self.model).get_input_embeddings(), updated, input=ids))

    @torch.no_grad()
    def below(self, batch: Batch, kind: DeltaKind) -> Batch:
        """Precompute everything below the delta's lowest layer, for a batch that is run several times.

        Returns the batch unchanged if the delta begins at the bottom, or if this model cannot be split exactly.
        """
        layer = kind.lowest_layer
        upper = self._upper_part(layer) if layer else None
        return batch if upper is None else self._precomputed(batch, layer, upper)

    def _precomputed(self, batch: Batch, layer: int, upper: nn.Module) -> Batch:
        return replace(batch, buckets=tuple(self._precomputed_bucket(bucket, layer, upper) for bucket in batch.buckets))

    def _precomputed_bucket(self, bucket: Bucket, layer: int, upper: nn.Module) -> Bucket:
        with delta_scope(None, bucket.noise):
            lower_states = lower_part(self.model, layer, {**bucket.inputs, "attention_mask": bucket.mask})
        return replace(bucket, lower_states=lower_states, upper=upper)

    def _upper_part(self, layer: int) -> nn.Module | None:
        """Return the model from `layer` up; None if the two parts and the whole model give different features.

        The comparison is exact to the last bit, on two rows of unequal length, once per layer.
        """
        with self._split_lock:
            if layer not in self._upper:
                batch = self._sample()
                upper: nn.Module | None = None
                try:
                    upper = upper_part(self.model, layer)
                    parts, whole = self.hidden(None, self._precomputed(batch, layer, upper)), self.hidden(None, batch)
                    same = torch.equal(parts.features, whole.features)
                except Exception as problem:  # every architecture can fail here in its own way; the model then runs whole
                    log.info("%s cannot be split below layer %d and runs whole: %s", type(self.model).__name__, layer, problem)
                    same = False
                self._upper[layer] = upper if same else None
            return self._upper[layer]


def pooled(states: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Pool hidden states [B, L, D], at least float32, to features [B, D] of length 1.

    `mask` [B, L]: 1 for a real token; the mean is over these.
    """
    if pooling == "cls":
        features = states[:, 0]
    else:
        weights = mask.unsqueeze(-1).to(states.dtype)
        features = (states * weights).sum(1) / weights.sum(1)
    return nn.functional.normalize(features, dim=-1)


def _add_noise(_embeddings: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    noise = current_noise()
    return None if noise is None else output + noise
