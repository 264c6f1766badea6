"""Virtual tokens, which prefix and prompt tuning share.

The rows of a mixed batch may have different numbers of them. In such a batch the leaves are padded in front to the largest
number, and the leaf `prefix_tokens` or `prompt_tokens` [G] has the number of real tokens of each group, which are the last
ones. Padding is not attended to, and the words of every row keep the positions that they have when the row runs alone.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metatrain.deltas.peft_format import PROMPT_EMBEDDINGS
from metatrain.deltas.scope import Delta, current_delta
from metatrain.errors import UnsupportedDelta

Inputs = tuple[Any, ...]
PROMPT = PROMPT_EMBEDDINGS
PREFIX_TOKENS, PROMPT_TOKENS = COUNTS = ("prefix_tokens", "prompt_tokens")
_POSITION_TABLES = {"position_embeddings", "wpe"}  # module names in BERT and in GPT-2


def random_vectors(shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator, b_std: float) -> dict[str, Tensor]:
    """Draw P normal vectors for each leaf, with the standard deviation `b_std`, or 0.02 if that is 0.

    They are never all zero, because P equal vectors would stay (nearly) equal during training.
    """
    return {name: (b_std or 0.02) * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def real_token_mask(counts: Tensor, size: int) -> Tensor:
    """Return the virtual tokens that are not padding, [G, size] bool: the last counts[g] of group g."""
    return torch.arange(size, device=counts.device) >= size - counts.unsqueeze(1)


def prepend_prompt(
    delta: Delta | None, inputs: Mapping[str, Tensor], embed: Callable[[Tensor], Tensor]
) -> tuple[dict[str, Tensor], int]:
    """Return the arguments of a model call with the prompt of the delta, if any, before the tokens.

    `inputs`: the arguments without it, `input_ids` and `attention_mask` [B, L]. `embed`: token ids [B, L] → embeddings [B, L,
    D]. Returns `inputs_embeds` [B, P + L, D] and `attention_mask` [B, P + L], and P. Without a prompt, returns `inputs`
    unchanged and 0.

    Raises UnsupportedDelta for any further argument, because it would have to be extended by P too.
    """
    if delta is None or PROMPT not in delta:
        return dict(inputs), 0
    if inputs.keys() != {"input_ids", "attention_mask"}:
        raise UnsupportedDelta(f"prompt: expected only input_ids and attention_mask, got {', '.join(sorted(inputs))}")
    prompt, counts = delta[PROMPT], delta.get(PROMPT_TOKENS)
    words, mask = embed(inputs["input_ids"]), inputs["attention_mask"]
    rows, tokens = mask.shape[0], prompt.shape[1]
    front = prompt.to(words.dtype).repeat_interleave(rows // prompt.shape[0], dim=0)
    mask = nn.functional.pad(mask, (tokens, 0), value=1)
    if counts is not None:
        mask[:, :tokens] = real_token_mask(counts, tokens)
    return {"inputs_embeds": torch.cat([front, words], dim=1), "attention_mask": mask}, tokens


def check_takes_token_ids(model: nn.Module, kind: str) -> None:
    """Raise UnsupportedDelta if the model's input is not token ids. Virtual tokens need a model of texts."""
    main_input = getattr(model, "main_input_name", "input_ids")
    if main_input != "input_ids":
        raise UnsupportedDelta(f"delta.kind: {kind} needs a model that takes input_ids, {type(model).__name__} takes {main_input}")


def hook_positions(model: nn.Module) -> None:
    """Register hooks on the modules that turn positions into embeddings or rotations. Idempotent."""
    for name, module in model.named_modules():
        hook: Any
        if name.split(".")[-1] in _POSITION_TABLES and isinstance(module, nn.Embedding):
            hook = _shift_embedded
        elif type(module).__name__.endswith("RotaryEmbedding"):
            hook = _shift_rotated
        else:
            continue
        if hook not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(hook, with_kwargs=True)


def _shift_embedded(_embedding: nn.Module, inputs: Inputs, named: dict[str, Any]) -> tuple[Inputs, dict[str, Any]] | None:
    """Add the prefix's length to the positions, as PEFT's cache does, and subtract the prompt's padding."""
    delta = current_delta()
    if delta is None:
        return None
    prefix = delta.get(PREFIX_TOKENS)
    if prefix is not None:
        shift: Tensor | int = prefix.long().unsqueeze(1)
    else:
        shift = next((leaf.shape[1] for name, leaf in delta.items() if name.endswith(".prefix_key")), 0)
    return ((inputs[0] + shift - _prompt_padding(delta)).clamp(min=0), *inputs[1:]), named


def _shift_rotated(_rotation: nn.Module, inputs: Inputs, named: dict[str, Any]) -> tuple[Inputs, dict[str, Any]] | None:
    """Subtract the prompt's padding from the positions.

    A prefix shifts nothing: its keys are not rotated, and between words only distances count.
    """
    delta = current_delta()
    if delta is None or PROMPT_TOKENS not in delta:
        return None
    if "position_ids" in named:
        return inputs, {**named, "position_ids": named["position_ids"] - _prompt_padding(delta)}
    return (inputs[0], inputs[1] - _prompt_padding(delta), *inputs[2:]), named


def _prompt_padding(delta: Delta) -> Tensor | int:
    """Return the number of padding tokens in each group's prompt, [G, 1]; 0 without `prompt_tokens`."""
    if PROMPT_TOKENS not in delta:
        return 0
    return delta[PROMPT].shape[1] - delta[PROMPT_TOKENS].long().unsqueeze(1)
