"""Virtual tokens, which prefix and prompt share. The rows of a mixed batch may have unequal numbers of them.

Then the leaves are padded in front to the most that a row has, and a leaf `prefix_tokens` or `prompt_tokens` [G] says how many of
them, the last ones, are real; the others are not attended to, and every row's words keep the position numbers that they have alone.
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
_POSITION_TABLES = {"position_embeddings", "wpe"}  # BERT's name for it and GPT-2's


def random_vectors(shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator, b_std: float) -> dict[str, Tensor]:
    """Draw P vectors for each leaf: normal with `b_std`, or 0.02, since P equal vectors would stay (nearly) equal."""
    return {name: (b_std or 0.02) * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def real_places(counts: Tensor, most: int) -> Tensor:
    """Say which of `most` places are no padding, [G, most] bool: the last counts[g], counts [G]."""
    return torch.arange(most, device=counts.device) >= most - counts.unsqueeze(1)


def with_prompt(
    delta: Delta | None, inputs: Mapping[str, Tensor], embed: Callable[[Tensor], Tensor]
) -> tuple[dict[str, Tensor], int]:
    """Put the prompt of a delta, if it has one, in front of the tokens that a model is to be called with.

    `inputs`: the call's arguments, `input_ids` and `attention_mask` [B, L]. `embed`: token ids [B, L] → embeddings [B, L, D].
    Returns the arguments to call the model with in their place, and the number of places P that now stand in front of each row:
    `inputs_embeds` [B, P + L, D] and `attention_mask` [B, P + L]; or, without a prompt, `inputs` as they are and 0.

    Raises UnsupportedDelta for a call that has more than tokens, since all of it would have to grow with them.
    """
    if delta is None or PROMPT not in delta:
        return dict(inputs), 0
    if inputs.keys() != {"input_ids", "attention_mask"}:
        raise UnsupportedDelta(f"a prompt stands in front of input_ids with an attention_mask, got {', '.join(sorted(inputs))}")
    prompt, counts = delta[PROMPT], delta.get(PROMPT_TOKENS)
    words, mask = embed(inputs["input_ids"]), inputs["attention_mask"]
    rows, tokens = mask.shape[0], prompt.shape[1]
    front = prompt.to(words.dtype).repeat_interleave(rows // prompt.shape[0], dim=0)
    mask = nn.functional.pad(mask, (tokens, 0), value=1)
    if counts is not None:
        mask[:, :tokens] = real_places(counts, tokens)
    return {"inputs_embeds": torch.cat([front, words], dim=1), "attention_mask": mask}, tokens


def check_takes_tokens(model: nn.Module, kind: str) -> None:
    """Raise UnsupportedDelta if the model's input is not token ids: virtual tokens stand in front of a text's own."""
    main_input = getattr(model, "main_input_name", "input_ids")
    if main_input != "input_ids":
        raise UnsupportedDelta(
            f"delta.kind: {kind} stands in front of the tokens of a text, {type(model).__name__} takes {main_input}"
        )


def move_positions(model: nn.Module) -> None:
    """Hook what turns the model's position numbers into embeddings or rotations. Idempotent."""
    for name, module in model.named_modules():
        hook: Any
        if name.split(".")[-1] in _POSITION_TABLES and isinstance(module, nn.Embedding):
            hook = _embedded
        elif type(module).__name__.endswith("RotaryEmbedding"):
            hook = _rotated
        else:
            continue
        if hook not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(hook, with_kwargs=True)


def _embedded(_embedding: nn.Module, inputs: Inputs, named: dict[str, Any]) -> tuple[Inputs, dict[str, Any]] | None:
    """Move positions on by what a prefix puts in front, as PEFT's cache of past keys does, and back by the padding of a prompt."""
    delta = current_delta()
    if delta is None:
        return None
    prefix = delta.get(PREFIX_TOKENS)
    if prefix is not None:
        on: Tensor | int = prefix.long().unsqueeze(1)
    else:
        on = next((leaf.shape[1] for name, leaf in delta.items() if name.endswith(".prefix_key")), 0)
    return ((inputs[0] + on - _padding(delta)).clamp(min=0), *inputs[1:]), named


def _rotated(_rotation: nn.Module, inputs: Inputs, named: dict[str, Any]) -> tuple[Inputs, dict[str, Any]] | None:
    """Move positions back by the padding of a prompt. Only distances count between words; a prefix's keys are not rotated."""
    delta = current_delta()
    if delta is None or PROMPT_TOKENS not in delta:
        return None
    if "position_ids" in named:
        return inputs, {**named, "position_ids": named["position_ids"] - _padding(delta)}
    return (inputs[0], inputs[1] - _padding(delta), *inputs[2:]), named


def _padding(delta: Delta) -> Tensor | int:
    """Return how many places of each group's prompt are padding, [G, 1]."""
    if PROMPT_TOKENS not in delta:
        return 0
    return delta[PROMPT].shape[1] - delta[PROMPT_TOKENS].long().unsqueeze(1)
