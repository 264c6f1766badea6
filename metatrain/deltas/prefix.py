"""Prefix tuning with a leading task axis: P learned keys and values in front of every attention's own.

    attention(q, [P_k; k], [P_v; v])          P_k, P_v: [P, D] for each layer          (Li and Liang 2021, arXiv:2101.00190, §4.2)

They are put there by an attention function that this module registers with transformers under names of its own and that hands on to
the model's own one, so any architecture that asks for its attention by name is supported; position numbers are moved on by P where
positions are embedded, as PEFT's cache of past keys does. Where the keys are rotated instead, those of a prefix are not, and words
keep their numbers. Which modules attend is measured by calling the model once. Under a causal mask every word sees the prefix.
"""

import sys
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from metatrain.deltas.peft_format import PeftFiles, side_by_side, virtual_tokens
from metatrain.deltas.scope import Delta, current_delta
from metatrain.deltas.sites import layer_of
from metatrain.deltas.virtual import PREFIX_TOKENS, check_takes_tokens, move_positions, random_vectors, real_places
from metatrain.errors import UnsupportedDelta, first_line

_TAKES_PAST_KEYS = {"bert", "roberta", "xlm-roberta", "camembert", "electra", "gpt2"}
_NAMES = {"eager": "quickstudy_eager", "sdpa": "quickstudy_sdpa"}


class PrefixConfig(BaseModel):
    """The choices of a prefix: P = `tokens`, PEFT's `num_virtual_tokens`, and `layers`, all that attend where None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    has_leaves: ClassVar[bool] = True

    kind: Literal["prefix"] = "prefix"
    tokens: int = Field(default=8, ge=1, le=256)
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(default=None, min_length=1)


class Prefix:
    """Leaves `{attention module}.prefix_key` and `.prefix_value`, [P, D], in the order of the layers.

    Raises UnsupportedDelta where the model's input is not token ids, where it does not ask for its attention by name or asks for
    another one than eager and sdpa, and for layers that do not attend.
    """

    def __init__(self, config: PrefixConfig, model: nn.Module) -> None:
        self.config, self.model = config, model
        check_takes_tokens(model, config.kind)
        name_of = {id(module): name for name, module in model.named_modules()}
        self.sites: dict[str, nn.Module] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for module, key_width, value_width in _attending(model):
            name = name_of[id(module)]
            if config.layers is None or layer_of(name) in config.layers:
                self.sites[name] = module
                self.shapes[f"{name}.prefix_key"] = (config.tokens, key_width)
                self.shapes[f"{name}.prefix_value"] = (config.tokens, value_width)
        unmatched = set(config.layers or ()) - {layer_of(name) for name in self.sites}
        if unmatched or not self.sites:
            raise UnsupportedDelta(f"delta.layers: {type(model).__name__} has no attention in layer {min(unmatched or {0})}")

    @property
    def lowest_layer(self) -> int:
        """0, since positions are moved on from the bottom."""
        return 0

    def initial(self, generator: torch.Generator, *, b_std: float = 0.0) -> dict[str, Tensor]:
        """Draw a fresh θ, one task, float32."""
        return random_vectors(self.shapes, generator, b_std)

    def attach(self, sites: Iterable[str]) -> None:
        for site in sites:
            cast(Any, self.sites[site]).prefix_site = site
        move_positions(self.model)

    def fold(self, delta: Delta) -> dict[str, Tensor]:
        return dict(delta)

    @property
    def counts(self) -> dict[str, int]:
        """P for the rows, which moves their positions, and P for each site, since prefixes may differ in their layers."""
        return dict.fromkeys([PREFIX_TOKENS, *(f"{site}.{PREFIX_TOKENS}" for site in self.sites)], self.config.tokens)

    @property
    def peft(self) -> PeftFiles | None:
        """None where PEFT computes something else.

        It puts a prefix in front of all layers, and only where the attention takes past keys and values.
        """
        model_config: Any = self.model.config
        if self.config.layers is not None or model_config.model_type not in _TAKES_PAST_KEYS:
            return None
        tokens, width = next(iter(self.shapes.values()))
        own = {"encoder_hidden_size": width, "prefix_projection": False}
        shared = virtual_tokens(tokens, width, model_config)
        return side_by_side({"peft_type": "PREFIX_TUNING", **shared, **own}, self.shapes)


def _with_prefix(own: Callable[..., Any] | None) -> Callable[..., Any]:
    """Return an attention function with the prefix of the call in front.

    `own`: the one that it hands on to, fused; None for the eager one of the module's architecture, which is given every mask.
    """

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *args: Any, **kwargs: Any
    ) -> Any:
        if (met := _recorded.get()) is not None:
            met.append((module, key.shape[1] * key.shape[3], value.shape[1] * value.shape[3]))
        delta, site = current_delta(), getattr(module, "prefix_site", None)
        if delta is not None and f"{site}.prefix_key" in delta:
            if own is not None and attention_mask is None:
                attention_mask = _implied_mask(module, query, key, kwargs.get("is_causal"))
            tokens, counts = delta[f"{site}.prefix_key"].shape[1], delta.get(f"{site}.{PREFIX_TOKENS}")
            attention_mask = _with_prefix_seen(attention_mask, tokens, counts, query, key.shape[2])
            key, value = (
                torch.cat([_heads(delta[f"{site}.prefix_{name}"], own_states), own_states], dim=2)
                for name, own_states in (("key", key), ("value", value))
            )
        there = own or cast(Any, sys.modules[type(module).__module__]).eager_attention_forward
        return there(module, query, key, value, attention_mask, *args, **kwargs)

    return attend


def _heads(prefix: Tensor, like: Tensor) -> Tensor:
    """Give each row its group's prefix: [G, P, H·d] → [B, H, P, d] for states `like` [B, H, L, d]."""
    rows, heads, _, size = like.shape
    split = prefix.to(like.dtype).view(prefix.shape[0], -1, heads, size).transpose(1, 2)
    return split.repeat_interleave(rows // prefix.shape[0], dim=0)


def _implied_mask(module: nn.Module, query: Tensor, key: Tensor, is_causal: bool | None) -> Tensor | None:
    """Return the mask [1, 1, L, K] that fused attention applies where it is given none; None where all is seen.

    It decides by `is_causal`, of the call or else of the module, as `sdpa_attention_forward` does; with a prefix among the keys it
    would take the first words for the prefix's own places.
    """
    length, keys = query.shape[2], key.shape[2]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    return torch.ones(1, 1, length, keys, dtype=torch.bool, device=query.device).tril() if causal and length > 1 else None


def _with_prefix_seen(mask: Tensor | None, tokens: int, counts: Tensor | None, query: Tensor, keys: int) -> Tensor | None:
    """Put P places in front of `mask` [B or 1, 1, L, K]: [B, 1, L, P + K]. They are seen, but for padding.

    None, in and out, is a mask that hides nothing.
    """
    if counts is None:
        return None if mask is None else nn.functional.pad(mask, (tokens, 0), value=True if mask.dtype == torch.bool else 0.0)
    rows, _, length, _ = query.shape
    if mask is None:
        mask = query.new_zeros(rows, 1, length, keys)  # to be added: that, and not a truth value, is what every attention takes
    mask = mask.expand(rows, -1, -1, -1)
    front = real_places(counts, tokens)[:, None, None, :].expand(*mask.shape[:-1], tokens)
    if mask.dtype != torch.bool:
        front = torch.zeros_like(front, dtype=mask.dtype).masked_fill(~front, torch.finfo(mask.dtype).min)
    return torch.cat([front, mask], dim=-1)


def _attending(model: nn.Module) -> list[tuple[nn.Module, int, int]]:
    """Find the modules that ask for an attention function, in the order of the call, and the widths of their keys and values.

    Leaves the model with our functions, which do what its own do where no prefix is given, so a call in another thread sees no
    difference; a model that is refused gets its own back.
    """
    name, before = type(model).__name__, getattr(cast(Any, model).config, "_attn_implementation", None)
    if before not in (*_NAMES, *_NAMES.values()):
        raise UnsupportedDelta(f"delta.kind: prefix needs attention by name, eager or sdpa; that of {name} is {before}")
    if before in _NAMES:
        cast(Any, model).set_attn_implementation(_NAMES[before])
    met: list[tuple[nn.Module, int, int]] = []
    problem = f"delta.kind: prefix: {name} does not ask for its attention by name"
    token = _recorded.set(met)
    try:
        with torch.no_grad():
            model(input_ids=torch.full((1, 2), 1, device=next(model.parameters()).device))
    except Exception as error:  # any architecture may fail here in its own way
        met, problem = [], f"delta.kind: prefix: {name} was called with two tokens: {first_line(error)}"
    finally:
        _recorded.reset(token)
    if not met:
        cast(Any, model).set_attn_implementation(before)
        raise UnsupportedDelta(problem)
    return met


_recorded: ContextVar[list[tuple[nn.Module, int, int]] | None] = ContextVar("recorded", default=None)
AttentionInterface.register(_NAMES["eager"], _with_prefix(None))
AttentionInterface.register(_NAMES["sdpa"], _with_prefix(sdpa_attention_forward))
for _own, _name in _NAMES.items():
    AttentionMaskInterface.register(_name, ALL_MASK_ATTENTION_FUNCTIONS[_own])
