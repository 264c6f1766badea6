"""The attention functions of base models, which know the packed rows and the prefix of a call.

transformers looks up a model's attention function by name. This file registers one for "eager" and one for "sdpa" attention. They
compute the same as the original ones, except in two kinds of calls:

- In a packed call they compute attention for each block of rows (`packing.py`), with the masks that the architecture states for
  rows of that length: bidirectional, causal or with a sliding window.
- In a call with a prefix they put its keys and values before those of the words.
"""

import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from metatrain.deltas.packing import Packing
from metatrain.deltas.scope import current_delta, current_packing
from metatrain.deltas.virtual import PREFIX_TOKENS, real_token_mask
from metatrain.errors import UnsupportedDelta, first_line

NAMES = {"eager": "quickstudy_eager", "sdpa": "quickstudy_sdpa"}
"""The registered name for each of transformers' attention functions that can be used."""
PREFIX_KEY, PREFIX_VALUE = "prefix_key", "prefix_value"
Attend = Callable[..., tuple[Tensor, Any]]


def attention_of(model: nn.Module) -> str | None:
    """Return the name of the model's attention function, or None if its configuration has none."""
    return getattr(cast(Any, model).config, "_attn_implementation", None)


def uses_registered_attention(model: nn.Module) -> bool:
    """Return True if a model runs with the attention functions of this file."""
    return attention_of(model) in NAMES.values()


def use_registered_attention(model: nn.Module) -> bool:
    """Switch a model to the attention functions of this file, which it keeps.

    Calls in other threads are not affected. Returns False, and changes nothing, if the model's attention is neither eager nor sdpa,
    or if the model does not look up its attention function by name.
    """
    before = attention_of(model)
    if before in NAMES and cast(Any, model)._can_set_attn_implementation():  # asked first, because a refusal is logged as a warning
        cast(Any, model).set_attn_implementation(NAMES[before])
    return uses_registered_attention(model)


def _attention(fused: Attend | None) -> Attend:
    """Return the attention function to register in place of `fused`.

    If `fused` is None, it takes the place of the eager function of each architecture. Fused attention that is called without a mask
    may apply a causal mask of its own (`_implied_mask`). The eager function never does.
    """

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Any]:
        if (recorded := _recorded_modules.get()) is not None:
            recorded.append((module, key.shape[1] * key.shape[3], value.shape[1] * value.shape[3]))
        attention: Attend = fused or cast(Any, sys.modules[type(module).__module__]).eager_attention_forward
        delta, site = current_delta(), getattr(module, "prefix_site", None)
        has_prefix = delta is not None and f"{site}.{PREFIX_KEY}" in delta
        if (packing := current_packing()) is not None:
            if has_prefix:
                raise UnsupportedDelta("delta.kind: prefix does not act on packed rows")
            if fused is not None and _has_variable_length_kernel(query, kwargs):
                return _variable_length_attention(packing, module, query, key, value, kwargs), None
            return _packed_attention(attention, packing, module, query, key, value, attention_mask, *args, **kwargs)
        if delta is not None and has_prefix:
            if fused is not None and attention_mask is None:
                attention_mask = _implied_mask(module, query, key, kwargs.get("is_causal"))
            tokens, counts = delta[f"{site}.{PREFIX_KEY}"].shape[1], delta.get(f"{site}.{PREFIX_TOKENS}")
            attention_mask = _mask_with_prefix(attention_mask, tokens, counts, query, key.shape[2])
            key, value = (
                torch.cat([_split_heads(delta[f"{site}.{name}"], states), states], dim=2)
                for name, states in ((PREFIX_KEY, key), (PREFIX_VALUE, value))
            )
        return attention(module, query, key, value, attention_mask, *args, **kwargs)

    return attend


def _packed_attention(
    attention: Attend,
    packing: Packing,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    masks: "_BlockMasks",
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention within each row of a packed call.

    `query`, `key` and `value`: [1, H, N, d], where keys and values may have fewer heads. Returns [1, N, H, d].
    """
    tokens = [states[0].transpose(0, 1) for states in (query, key, value)]
    parts = []
    for block, mask in zip(packing.blocks, masks, strict=True):
        rows = [block.padded(states).transpose(1, 2) for states in tokens]
        parts.append(attention(module, *rows, mask, *args, **kwargs)[0])
    return packing.joined(parts).unsqueeze(0), None


def _has_variable_length_kernel(query: Tensor, stated: Mapping[str, Any]) -> bool:
    """Return True if PyTorch's kernel for rows of unequal length can compute this call of fused attention.

    It runs on GPUs, in half precision, and has no second derivative, so it is used for predictions alone.
    """
    plain = all(stated.get(name) is None for name in ("sliding_window", "softcap", "position_bias"))
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and not torch.is_grad_enabled() and plain


def _variable_length_attention(
    packing: Packing, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, stated: Mapping[str, Any]
) -> Tensor:
    """Compute attention within each row of a packed call, in one kernel for all rows.

    For shapes see `_packed_attention`.

    Whether it is causal follows from the argument `is_causal` or, if it is None, from the module, as in `sdpa_attention_forward`.
    """
    from torch.nn.attention.varlen import varlen_attn  # not at the top: only PyTorch with CUDA needs it

    is_causal = getattr(module, "is_causal", True) if stated.get("is_causal") is None else stated["is_causal"]
    bounds, longest = packing.bounds, max(packing.lengths)
    queries, keys, values = (states[0].transpose(0, 1).contiguous() for states in (query, key, value))
    window = (-1, 0) if is_causal else (-1, -1)
    grouped = query.shape[1] != key.shape[1]
    kernel: Any = varlen_attn
    found: Tensor = kernel(
        queries, keys, values, bounds, bounds, longest, longest,
        scale=stated.get("scaling"), window_size=window, enable_gqa=grouped,
    )  # fmt: skip
    return found.unsqueeze(0)


class _BlockMasks(tuple[Tensor | None, ...]):
    """The masks of the blocks of a packed call.

    A model passes them on to its attention function in place of one mask.
    """


def _mask(original: Callable[..., Tensor | None]) -> Callable[..., Any]:
    """Return the function to register in place of a function that makes attention masks."""

    def make(*args: Any, **kwargs: Any) -> Any:
        if (packing := current_packing()) is None:
            return original(*args, **kwargs)
        stated = {name: value for name, value in kwargs.items() if name not in ("q_offset", "kv_offset")}

        def of_block(rows: int, length: int, real: Tensor | None) -> Tensor | None:
            return original(**{**stated, "batch_size": rows, "q_length": length, "kv_length": length, "attention_mask": real})

        return _BlockMasks(of_block(len(block.rows), block.length, block.mask) for block in packing.blocks)

    return make


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


def attention_modules(model: nn.Module) -> list[tuple[nn.Module, int, int]]:
    """Return the attention modules, each with the widths of its keys and values, in calling order.

    To find the modules, this function switches the model to the attention functions of this file, and calls it with two tokens.
    Raises UnsupportedDelta if the attention is neither eager nor sdpa, if the call fails or if no module is found; the original
    attention is then restored.
    """
    name, before = type(model).__name__, attention_of(model)
    if not use_registered_attention(model):
        raise UnsupportedDelta(f"delta.kind: prefix: expected eager or sdpa attention, {name} has {before}")
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
AttentionInterface.register(NAMES["eager"], _attention(None))
AttentionInterface.register(NAMES["sdpa"], _attention(sdpa_attention_forward))
for _original_name, _name in NAMES.items():
    AttentionMaskInterface.register(_name, _mask(ALL_MASK_ATTENTION_FUNCTIONS[_original_name]))
