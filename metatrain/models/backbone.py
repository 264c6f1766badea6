"""A frozen model as a pure function: (delta, batch) → hidden states and pooled features.

The backbone is independent of the modality: a batch carries the tensors that the model is called with.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from metatrain.deltas import Delta, DeltaKind, build, delta_scope
from metatrain.deltas.attention import attention_of, use_registered_attention, uses_registered_attention
from metatrain.deltas.scope import current_noise
from metatrain.deltas.virtual import first_position, prepend_prompt
from metatrain.errors import first_line
from metatrain.models.batch import Batch, Lower, Part, RowDelta
from metatrain.models.split_model import lower_part, upper_part

log = logging.getLogger(__name__)
Attention = Literal["auto", "sdpa", "eager"]
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""The largest difference of two features that count as equal, by the dtype of the model."""


@dataclass(frozen=True)
class Hidden:
    """The output of the backbone for B rows with N real tokens in total.

    All tensors are at least float32. `features` [B, F]: the pooled hidden states of each row (`Batch.pooler`), scaled to length 1.
    `states` [N, D]: the hidden states of row i are `states[offsets[i] : offsets[i + 1]]`. Rows of `features` and `states` are in
    the caller's order. `computed`: each part of the batch with its last hidden states, in the part's own form.
    """

    features: Tensor
    computed: tuple[tuple[Part, Tensor], ...]

    @cached_property
    def _states_by_row(self) -> list[Tensor]:
        by_row: dict[int, Tensor] = {}
        for part, states in self.computed:
            by_row |= zip(part.rows.tolist(), part.states_by_row(states), strict=True)
        return [by_row[row] for row in sorted(by_row)]

    @property
    def states(self) -> Tensor:
        """The hidden states of all real tokens after the last layer, one row after the other, [N, D]."""
        return torch.cat(self._states_by_row)

    @property
    def offsets(self) -> Tensor:
        """The index in `states` where each row begins, and the end of the last row, [B + 1] int64."""
        return torch.tensor([0, *(len(states) for states in self._states_by_row)]).cumsum(0)


class Backbone:
    """A frozen model in memory, which runs with the delta that a call passes to it. Thread-safe.

    The model stores no delta. `attention`: second derivatives need "eager", because PyTorch's fused attention ("sdpa") has none.
    `sample`: returns a batch of two rows of unequal length, packed or padded, with which `packs` and `below` check the model.
    """

    def __init__(self, model: nn.Module, *, attention: Attention, sample: Callable[[bool], Batch]) -> None:
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
        self._first_position = first_position(model)
        self._packs: bool | None = None
        self._check_lock = threading.RLock()
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

    @property
    def packs(self) -> bool:
        """True if the model computes the same for packed rows as for padded ones, which is checked once."""
        with self._check_lock:
            if self._packs is None:
                problem = self._packing_problem()
                self._packs = problem is None
                if problem is not None:
                    log.info("%s runs on padded rows: %s", type(self.model).__name__, problem)
            return self._packs

    @contextmanager
    def padded_rows(self, reason: str) -> Iterator[None]:
        """Pad the rows of this model within a `with` block, and from then on if the block raises no exception."""
        with self._check_lock:
            self._packs = False
            try:
                yield
            except BaseException:
                self._packs = True
                raise
            log.info("%s runs on padded rows: %s", type(self.model).__name__, reason)

    def _packing_problem(self) -> str | None:
        """Return the reason why rows cannot be packed for this model, or None."""
        if not use_registered_attention(self.model):
            return f"its {attention_of(self.model)} attention cannot be replaced"
        try:
            with torch.no_grad():
                packed, padded = (self.hidden(None, self._sample(packed)).features for packed in (True, False))
        except Exception as problem:  # every architecture can fail here in its own way; the model then runs on padded rows
            return first_line(problem)
        gap = float((packed - padded).abs().max())
        return None if gap <= TOLERANCE[self.dtype] else f"features of packed rows differ by {gap:.1e}"

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
        slots: Sequence[int] | None = None,
        updated: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Hidden:
        """Run the model on a batch. Differentiable in `delta` and in `updated`.

        `delta`: leaves in the form that `DeltaKind.fold` returns; None runs the bare model. `slots`: row i uses entry `slots[i]` of
        each leaf's leading axis. Without `slots`, the leading axis is the G groups of the batch, and the rows are ordered by group.
        `updated`: parameters that replace those of the model with the same names. Calls in several threads run one after another,
        because these parameters are replaced on the model itself during the call.
        """
        with self.exclusive:
            computed = tuple((part, self._states(part.delta(delta, slots), part, updated)) for part in batch.parts)
        order = torch.cat([part.rows for part in batch.parts]).argsort()
        features = torch.cat([part.pooled(states, batch.pooler) for part, states in computed])[order]
        return Hidden(features, computed)

    def features_recomputed(
        self, delta: Delta | None, batch: Batch, *, rows_at_once: int, updated: Mapping[str, Tensor] = MappingProxyType({})
    ) -> Tensor:
        """Return the features of `hidden`, but keep the autograd graph of only a few rows in memory at a time.

        The batch is computed in parts of at most `rows_at_once` rows, or of one row of each group if that is more. Each part is
        recomputed whenever a derivative is taken through it (gradient checkpointing, Chen et al. 2016, arXiv:1604.06174). The
        features are otherwise those of `hidden`, because the rows of a batch do not affect each other.
        """
        groups = next((len(leaf) for leaf in (delta or {}).values()), 1)
        parts = [small for part in batch.parts for small in part.split(groups, rows_at_once)]

        def features(part: Part) -> Tensor:
            return part.pooled(self._states(part.delta(delta, None), part, updated), batch.pooler)

        order = torch.cat([part.rows for part in parts]).argsort()
        found = [checkpoint(features, part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        return torch.cat(cast(list[Tensor], found))[order]

    def _states(self, delta: RowDelta, part: Part, updated: Mapping[str, Tensor]) -> Tensor:
        """Return the last hidden states of a part of a batch, at least float32."""
        if part.packing is not None and not uses_registered_attention(self.model):
            raise ValueError("a packed batch needs a model that can be packed (Backbone.packs)")
        with delta_scope(delta.leaves, part.noise, part.packing, delta.groups):
            arguments = part.arguments(self._first_position)
            inputs, prompt_length = prepend_prompt(delta.leaves, arguments, lambda ids: self._embed(ids, updated))
            if prompt_length or part.lower is None or not self._updates_only(part.lower.upper, updated):
                states: Tensor = self._call(self.model, updated, **inputs).last_hidden_state[:, prompt_length:]
            else:
                states = self._call_upper(part.lower, updated, arguments).last_hidden_state
        return states.to(torch.promote_types(states.dtype, torch.float32))

    def _call_upper(self, lower: Lower, updated: Mapping[str, Tensor], arguments: Mapping[str, Tensor]) -> Any:
        others = {name: tensor for name, tensor in arguments.items() if name != "input_ids"}
        return self._call(lower.upper, updated, inputs_embeds=lower.states, **others)

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
        def with_lower(part: Part) -> Part:
            with delta_scope(None, part.noise, part.packing):
                states = lower_part(self.model, layer, part.arguments(self._first_position))
            return part.with_lower(Lower(states, upper))

        return replace(batch, parts=tuple(map(with_lower, batch.parts)))

    def _upper_part(self, layer: int) -> nn.Module | None:
        """Return the part of the model from `layer` up, or None if the model cannot be split there.

        A split is used only if the two parts together and the whole model give bitwise equal features for two rows of unequal
        length. This is checked once per layer.
        """
        with self._check_lock:
            if layer not in self._upper:
                batch = self._sample(self.packs)
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
