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
from metatrain.models.pooling import Pooler
from metatrain.models.pooling import Pooling as Pooling
from metatrain.models.pooling import pooled as pooled
from metatrain.models.split_model import lower_part, upper_part

log = logging.getLogger(__name__)
Attention = Literal["auto", "sdpa", "eager"]


@dataclass(frozen=True)
class Bucket:
    """A part of a batch: B rows of similar length, padded to the longest of them.

    A group is a set of rows that use the same delta. The bucket contains equally many rows of each group, one group after the other
    (group-major). `inputs`: the arguments of the model, each [B, L, …]. `mask` [B, L]: 1 for a real token, 0 for padding.
    `rows` [B]: the index of each row in the caller's order. `noise` [B, L, D], if any, is added to the word embeddings.
    `lower_states` [B, L, D], if any: the precomputed input of `upper`, the upper layers of the model, so that only `upper` has to
    run.
    """

    inputs: dict[str, Tensor]
    mask: Tensor
    rows: Tensor
    noise: Tensor | None = None
    lower_states: Tensor | None = None
    upper: nn.Module | None = None

    def parts(self, groups: int, most: int) -> list["Bucket"]:
        """Split the bucket into parts of at most `most` rows, with the same number of rows of each group.

        Each part has at least one row of each of the `groups` groups, even if that is more than `most` rows.
        """
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
    """B rows, split into buckets of similar length so that less is computed on padding.

    `pooler`: turns the hidden states of a row into its features.
    """

    buckets: tuple[Bucket, ...]
    pooler: Pooler

    @property
    def size(self) -> int:
        """The number of rows, B."""
        return sum(len(bucket.rows) for bucket in self.buckets)


@dataclass(frozen=True)
class Hidden:
    """The output of the backbone for B rows with N real tokens in total.

    All tensors are at least float32. `features` [B, F]: the pooled hidden states of each row (`Batch.pooler`), scaled to length 1.
    `states` [N, D]: the hidden states of row i are `states[offsets[i] : offsets[i + 1]]`. Rows of `features` and `states` are in
    the caller's order. `padded`: each bucket with its hidden states [B, L, D], in the order of the bucket.
    """

    features: Tensor
    padded: tuple[tuple[Bucket, Tensor], ...]

    @property
    def states(self) -> Tensor:
        """The hidden states of all real tokens after the last layer, one row after the other, [N, D]."""
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
    """A frozen model in memory, which runs with the delta that a call passes to it. Thread-safe.

    The model stores no delta. `attention`: second derivatives need "eager", because PyTorch's fused attention ("sdpa") has none.
    `sample`: returns a batch of two rows of unequal length, with which `below` checks a split of the model.
    """

    def __init__(self, model: nn.Module, *, attention: Attention, sample: Callable[[], Batch]) -> None:
        self.model = model.eval().requires_grad_(False)
        self.attention = attention
        self._sample = sample
        parameter = next(model.parameters())
        self.dtype, self.device = parameter.dtype, parameter.device
        self.hidden_size = int(cast(Any, model.config).hidden_size)
        self._attached: dict[Any, DeltaKind] = {}
        # The hooks of the model as (kind, site). They are stored on the model itself, so that a second backbone of the same model
        # does not register them again, which would apply a delta twice.
        self._hooked: set[tuple[str, str]] = vars(model).setdefault("_quickstudy_hooked", set())
        self._upper: dict[int, nn.Module | None] = {}
        self._split_lock = threading.Lock()
        self._attach_lock = threading.Lock()
        self.exclusive = threading.RLock()
        """Held by each call of the model. Hold it to copy the model with its own parameters."""
        embeddings = cast(Any, model).get_input_embeddings()
        if _add_noise not in embeddings._forward_hooks.values():
            embeddings.register_forward_hook(_add_noise)

    @property
    def precision(self) -> str:
        """The dtype of the weights, by its name in recipes and adapters: `float32` or `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")

    def attach(self, config: Any) -> DeltaKind:
        """Set up the delta kind that a `DeltaConfig` describes, and register its hooks on this model.

        Later calls with an equal configuration return the same object and register nothing. Raises UnsupportedDelta if the delta
        does not fit the model.
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

        `delta`: leaves in the form that `DeltaKind.fold` returns; None runs the bare model. `slots` [B]: row i uses entry
        `slots[i]` of each leaf's leading axis. Without `slots`, the leading axis is the G groups of the batch, and the rows are
        ordered by group. `updated`: parameters that replace those of the model with the same names. Calls in several threads run
        one after another, because these parameters are replaced on the model itself during the call.
        """
        padded = []
        with self.exclusive:
            for bucket in batch.buckets:
                row_delta = delta
                if delta is not None and slots is not None:
                    index = slots[bucket.rows]
                    row_delta = {name: leaf.index_select(0, index) for name, leaf in delta.items()}
                padded.append((bucket, self._states(row_delta, bucket, updated)))
        order = torch.cat([bucket.rows for bucket in batch.buckets]).argsort()
        features = torch.cat([batch.pooler(states, bucket.mask) for bucket, states in padded])[order]
        return Hidden(features, tuple(padded))

    def features_recomputed(
        self, delta: Delta | None, batch: Batch, *, rows_at_once: int, updated: Mapping[str, Tensor] = MappingProxyType({})
    ) -> Tensor:
        """Return the features of `hidden`, but keep the autograd graph of only a few rows in memory at a time.

        The batch is computed in parts of at most `rows_at_once` rows, or of one row of each group if that is more. Each part is
        recomputed whenever a derivative is taken through it (gradient checkpointing, Chen et al. 2016, arXiv:1604.06174). The
        features are otherwise those of `hidden`, because the rows of a batch do not affect each other.
        """
        groups = next((len(leaf) for leaf in (delta or {}).values()), 1)
        parts = [part for bucket in batch.buckets for part in bucket.parts(groups, rows_at_once)]

        def features(part: Bucket) -> Tensor:
            return batch.pooler(self._states(delta, part, updated), part.mask)

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
        """Precompute the hidden states that enter the delta's lowest layer, for a batch that runs repeatedly.

        Returns the batch with these states. Returns it unchanged if the delta's lowest layer is the model's lowest one, or if the
        model cannot be split without changing its output.
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
        """Return the part of the model from `layer` up, or None if the model cannot be split there.

        A split is used only if the two parts together and the whole model give bitwise equal features for two rows of unequal
        length. This is checked once per layer.
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


def _add_noise(_embeddings: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    noise = current_noise()
    return None if noise is None else output + noise
