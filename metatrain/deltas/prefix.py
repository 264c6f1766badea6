"""Prefix tuning: P learned keys and values in the attention of each layer. Leaves have a task axis.

    attention(q, [P_k; k], [P_v; v])          P_k, P_v: [P, D] for each layer          (Li and Liang 2021, arXiv:2101.00190, §4.2)

This module registers two attention functions with transformers, one for eager and one for sdpa attention. Each of them prepends the
prefix and then calls the original function. So every architecture that looks up its attention function by name is supported. The
attention modules are found by calling the model once.

In a model with a table of position embeddings, the positions of the words are increased by P, as in PEFT, which passes the prefix
as a cache of past keys. In a model with rotary embeddings, the keys of the prefix are not rotated, and the positions of the words
do not change. Under a causal mask every word sees the prefix.
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
from metatrain.deltas.virtual import PREFIX_TOKENS, check_takes_token_ids, hook_positions, random_vectors, real_token_mask
from metatrain.errors import UnsupportedDelta, first_line

_TAKES_PAST_KEYS = {"bert", "roberta", "xlm-roberta", "camembert", "electra", "gpt2"}
_NAMES = {"eager": "quickstudy_eager", "sdpa": "quickstudy_sdpa"}


class PrefixConfig(BaseModel):
    """The configuration of a prefix.

    `tokens`: P, the number of learned keys and values in each layer (PEFT's `num_virtual_tokens`). `layers`: the numbers of the
    layers (`sites.layer_of`) that get a prefix; None is every layer with attention.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    has_leaves: ClassVar[bool] = True

    kind: Literal["prefix"] = "prefix"
    tokens: int = Field(default=8, ge=1, le=256)
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(default=None, min_length=1)


class Prefix:
    """A prefix on one base model (a `DeltaKind`).

    Leaves: `{attention module}.prefix_key` P_k and `{attention module}.prefix_value` P_v, [P, D], in the order of the layers.
    Raises UnsupportedDelta if the model's input is not token ids, if its attention is neither eager nor sdpa, if it does not look
    up its attention function by name, or if a layer in `layers` has no attention.
    """

    def __init__(self, config: PrefixConfig, model: nn.Module) -> None:
        self.config, self.model = config, model
        check_takes_token_ids(model, config.kind)
        attention_before = _attention_of(model)
        name_of = {id(module): name for name, module in model.named_modules()}
        self.sites: dict[str, nn.Module] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for module, key_width, value_width in _attention_modules(model):
            name = name_of[id(module)]
            if config.layers is None or layer_of(name) in config.layers:
                self.sites[name] = module
                self.shapes[f"{name}.prefix_key"] = (config.tokens, key_width)
                self.shapes[f"{name}.prefix_value"] = (config.tokens, value_width)
        unmatched = set(config.layers or ()) - {layer_of(name) for name in self.sites}
        if unmatched or not self.sites:
            cast(Any, model).set_attn_implementation(attention_before)
            raise UnsupportedDelta(f"delta.layers: {type(model).__name__} has no attention in layer {min(unmatched or {0})}")

    @property
    def lowest_layer(self) -> int:
        """0, because a prefix shifts the positions of the words, which enter at the bottom of the model."""
        return 0

    def initial(self, generator: torch.Generator, *, b_std: float = 0.0) -> dict[str, Tensor]:
        """Draw initial leaves θ for one task, float32, normal with the standard deviation `b_std`.

        If `b_std` is 0, the standard deviation is 0.02.
        """
        return random_vectors(self.shapes, generator, b_std)

    def attach(self, sites: Iterable[str]) -> None:
        for site in sites:
            cast(Any, self.sites[site]).prefix_site = site
        hook_positions(self.model)

    def fold(self, delta: Delta) -> dict[str, Tensor]:
        return dict(delta)

    @property
    def counts(self) -> dict[str, int]:
        """The number of prefix tokens P under several leaf names: `prefix_tokens` and one for each site.

        The leaf `prefix_tokens` shifts the positions of a row's words. The leaf `{site}.prefix_tokens` of each site is needed
        because the same batch may contain rows that have a prefix in other layers.
        """
        return dict.fromkeys([PREFIX_TOKENS, *(f"{site}.{PREFIX_TOKENS}" for site in self.sites)], self.config.tokens)

    @property
    def peft(self) -> PeftFiles | None:
        """The format of θ in PEFT's files; None if PEFT would compute something else.

        PEFT supports only prefixes in all layers, and only models whose attention takes past keys and values.
        """
        model_config: Any = self.model.config
        if self.config.layers is not None or model_config.model_type not in _TAKES_PAST_KEYS:
            return None
        tokens, width = next(iter(self.shapes.values()))
        prefix_fields = {"encoder_hidden_size": width, "prefix_projection": False}
        shared = virtual_tokens(tokens, width, model_config)
        return side_by_side({"peft_type": "PREFIX_TUNING", **shared, **prefix_fields}, self.shapes)


def _prefix_attention(fused: Callable[..., Any] | None) -> Callable[..., Any]:
    """Return an attention function that prepends the prefix of the current call to the keys and values.

    `fused`: the attention function to call afterwards; None calls the eager function of the module's architecture. A fused function
    that is called without a mask may apply a causal mask of its own (`_implied_mask`). The eager function never does.
    """

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *args: Any, **kwargs: Any
    ) -> Any:
        if (recorded := _recorded_modules.get()) is not None:
            recorded.append((module, key.shape[1] * key.shape[3], value.shape[1] * value.shape[3]))
        delta, site = current_delta(), getattr(module, "prefix_site", None)
        if delta is not None and f"{site}.prefix_key" in delta:
            if fused is not None and attention_mask is None:
                attention_mask = _implied_mask(module, query, key, kwargs.get("is_causal"))
            tokens, counts = delta[f"{site}.prefix_key"].shape[1], delta.get(f"{site}.{PREFIX_TOKENS}")
            attention_mask = _mask_with_prefix(attention_mask, tokens, counts, query, key.shape[2])
            key, value = (
                torch.cat([_split_heads(delta[f"{site}.prefix_{name}"], states), states], dim=2)
                for name, states in (("key", key), ("value", value))
            )
        attention = fused or cast(Any, sys.modules[type(module).__module__]).eager_attention_forward
        return attention(module, query, key, value, attention_mask, *args, **kwargs)

    return attend


def _split_heads(prefix: Tensor, like: Tensor) -> Tensor:
    """Split the prefixes of G groups [G, P, H·d] into heads and repeat them for the B rows: [B, H, P, d].

    `like` [B, H, L, d]: the keys or values of the words. The result has the same rows, heads and dtype.
    """
    rows, heads, _, size = like.shape
    split = prefix.to(like.dtype).view(prefix.shape[0], -1, heads, size).transpose(1, 2)
    return split.repeat_interleave(rows // prefix.shape[0], dim=0)


def _implied_mask(module: nn.Module, query: Tensor, key: Tensor, is_causal: bool | None) -> Tensor | None:
    """Return the causal mask [1, 1, L, K] that fused attention applies if it is called without a mask.

    Returns None if fused attention would not apply a causal mask. As in `sdpa_attention_forward`, this depends on the argument
    `is_causal` or, if it is None, on the module's `is_causal`. With a prefix the mask has to be explicit, because fused attention
    would align its own causal mask with the first keys, which are those of the prefix.
    """
    length, keys = query.shape[2], key.shape[2]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    return torch.ones(1, 1, length, keys, dtype=torch.bool, device=query.device).tril() if causal and length > 1 else None


def _mask_with_prefix(mask: Tensor | None, tokens: int, counts: Tensor | None, query: Tensor, keys: int) -> Tensor | None:
    """Extend an attention mask [B or 1, 1, L, K] to the keys of the prefix: [B or 1, 1, L, P + K].

    The new columns hide only the padding of the prefix. `mask` and the result may be None, which hides nothing. `tokens`: P.
    `counts`: the number of real tokens in each row's prefix; None if all P are real. `query`: a tensor with B rows and L positions.
    `keys`: K, the number of keys without the prefix.
    """
    if counts is None:
        return None if mask is None else nn.functional.pad(mask, (tokens, 0), value=True if mask.dtype == torch.bool else 0.0)
    rows, _, length, _ = query.shape
    if mask is None:
        mask = query.new_zeros(rows, 1, length, keys)  # an additive mask, which every attention function accepts
    mask = mask.expand(rows, -1, -1, -1)
    front = real_token_mask(counts, tokens)[:, None, None, :].expand(*mask.shape[:-1], tokens)
    if mask.dtype != torch.bool:
        front = torch.zeros_like(front, dtype=mask.dtype).masked_fill(~front, torch.finfo(mask.dtype).min)
    return torch.cat([front, mask], dim=-1)


def _attention_of(model: nn.Module) -> str | None:
    """Return the name of the model's attention function, or None if its configuration has none."""
    return getattr(cast(Any, model).config, "_attn_implementation", None)


def _attention_modules(model: nn.Module) -> list[tuple[nn.Module, int, int]]:
    """Return the attention modules, each with the widths of its keys and values, in calling order.

    To find the modules, this function calls the model with two tokens. First it switches the model to the attention functions that
    this file registers, and leaves it so. Without a prefix these functions compute the same as the original ones, so calls in other
    threads are not affected. Raises UnsupportedDelta if the attention is neither eager nor sdpa, if the call fails or if no module
    is found; the original attention is then restored.
    """
    name, before = type(model).__name__, _attention_of(model)
    if before not in (*_NAMES, *_NAMES.values()):
        raise UnsupportedDelta(f"delta.kind: prefix: expected eager or sdpa attention, {name} has {before}")
    if before in _NAMES:
        cast(Any, model).set_attn_implementation(_NAMES[before])
    recorded: list[tuple[nn.Module, int, int]] = []
    problem = f"delta.kind: prefix: {name} does not look up its attention function by name"
    token = _recorded_modules.set(recorded)
    try:
        with torch.no_grad():
            model(input_ids=torch.full((1, 2), 1, device=next(model.parameters()).device))
    except Exception as error:  # every architecture can fail here in its own way
        recorded, problem = [], f"delta.kind: prefix: a call of {name} with two tokens failed: {first_line(error)}"
    finally:
        _recorded_modules.reset(token)
    if not recorded:
        cast(Any, model).set_attn_implementation(before)
        raise UnsupportedDelta(problem)
    return recorded


_recorded_modules: ContextVar[list[tuple[nn.Module, int, int]] | None] = ContextVar("recorded_modules", default=None)
AttentionInterface.register(_NAMES["eager"], _prefix_attention(None))
AttentionInterface.register(_NAMES["sdpa"], _prefix_attention(sdpa_attention_forward))
for _original_name, _name in _NAMES.items():
    AttentionMaskInterface.register(_name, ALL_MASK_ATTENTION_FUNCTIONS[_original_name])
