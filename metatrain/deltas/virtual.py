"""Virtual tokens: the learned vectors that prefix and prompt tuning put before the words of a text.

The groups of a mixed batch may have different numbers of virtual tokens. In such a batch the leaves are padded in front to the
largest number, and the leaf `prefix_tokens` or `prompt_tokens` [G] states the number of real tokens in each group. The real tokens
are the last ones. Padding is not attended to, and the words of every row have the same positions as if the row ran alone.
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
    """Draw normal initial values for each leaf, with the standard deviation `b_std`.

    If `b_std` is 0, the standard deviation is 0.02. The values must not all be zero: virtual tokens that start equal would stay
    (nearly) equal during training.
    """
    return {name: (b_std or 0.02) * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def real_token_mask(counts: Tensor, size: int) -> Tensor:
    """Return a mask [G, size] that is True for the real virtual tokens and False for padding.

    `counts` [G]: the number of real tokens in each group. They are the last ones of the group's `size` tokens.
    """
    return torch.arange(size, device=counts.device) >= size - counts.unsqueeze(1)


def prepend_prompt(
    delta: Delta | None, inputs: Mapping[str, Tensor], embed: Callable[[Tensor], Tensor]
) -> tuple[dict[str, Tensor], int]:
    """Return the arguments of a model call with the delta's prompt before the words, and its length P.

    `inputs`: the arguments without the prompt, which are `input_ids` and `attention_mask`, both [B, L]. `embed`: a function from
    token ids [B, L] to embeddings [B, L, D]. The returned arguments are `inputs_embeds` [B, P + L, D] and `attention_mask` [B, P +
    L]. If the delta has no prompt, returns `inputs` unchanged and 0.

    Raises UnsupportedDelta if `inputs` contains any other argument, because this function cannot extend it by the prompt.
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
    """Raise UnsupportedDelta unless the model takes token ids, which virtual tokens need.

    `kind`: the name of the delta kind, for the message.
    """
    main_input = getattr(model, "main_input_name", "input_ids")
    if main_input != "input_ids":
        raise UnsupportedDelta(f"delta.kind: {kind} needs a model that takes input_ids, {type(model).__name__} takes {main_input}")


def hook_positions(model: nn.Module) -> None:
    """Register hooks that adjust the position ids of a text's words for virtual tokens before them.

    The hooks are on the modules that turn positions into embeddings or rotations. A second call for the same model changes nothing.
    """
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


def first_position(model: nn.Module) -> int:
    """Return the position id of a row's first token.

    Architectures whose table of positions has an entry for padding, such as RoBERTa, count from the entry after it.
    """
    tables = (m for n, m in model.named_modules() if n.split(".")[-1] in _POSITION_TABLES and isinstance(m, nn.Embedding))
    return next((table.padding_idx + 1 for table in tables if table.padding_idx is not None), 0)


def _shift_embedded(_embedding: nn.Module, inputs: Inputs, named: dict[str, Any]) -> tuple[Inputs, dict[str, Any]] | None:
    """Add the prefix's length to the positions, and subtract the prompt's padding from them.

    PEFT shifts the positions by the prefix's length too, through its cache of past keys.
    """
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

    A prefix needs no shift: its keys are not rotated, and attention between words depends only on their distance.
    """
    delta = current_delta()
    if delta is None or PROMPT_TOKENS not in delta:
        return None
    if "position_ids" in named:
        return inputs, {**named, "position_ids": named["position_ids"] - _prompt_padding(delta)}
    return (inputs[0], inputs[1] - _prompt_padding(delta), *inputs[2:]), named


def _prompt_padding(delta: Delta) -> Tensor | int:
    """Return the number of padding tokens in each group's prompt, [G, 1].

    Returns 0 if the delta has no leaf `prompt_tokens`, so that no prompt is padded.
    """
    if PROMPT_TOKENS not in delta:
        return 0
    return delta[PROMPT].shape[1] - delta[PROMPT_TOKENS].long().unsqueeze(1)
