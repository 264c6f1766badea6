"""A delta as PEFT's own two files, where PEFT has the kind and it works: `adapter_config.json` and `adapter_model.safetensors`.

PEFT has no bottleneck adapter, no delta without leaves and no prefix for some layers alone, and its prefix tuning reaches only
those architectures whose attention takes past keys and values; such a delta is `delta.safetensors`, under our names.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metatrain.deltas.ia3 import IA3
from metatrain.deltas.kind import DeltaKind
from metatrain.deltas.lora import LoRA
from metatrain.deltas.prefix import Prefix
from metatrain.deltas.prompt import Prompt
from metatrain.deltas.virtual import PROMPT

_WRAPPER = "base_model.model."
_TAKES_PAST_KEYS = {"bert", "roberta", "xlm-roberta", "camembert", "electra"}


def in_peft(kind: DeltaKind) -> bool:
    """PEFT computes the same from files of its own."""
    if isinstance(kind, Prefix):
        return kind.config.layers is None and _architecture(kind) in _TAKES_PAST_KEYS
    return isinstance(kind, LoRA | IA3 | Prompt)


def peft_config(kind: DeltaKind, base_model: str) -> dict[str, Any]:
    """`adapter_config.json`, of a kind that is `in_peft`."""
    common = {"task_type": "FEATURE_EXTRACTION", "base_model_name_or_path": base_model, "inference_mode": True}
    return {**essentials(kind), **common}


def essentials(kind: DeltaKind) -> dict[str, Any]:
    """The entries that decide what PEFT computes."""
    if isinstance(kind, LoRA):
        own = {"r": kind.config.rank, "lora_alpha": kind.config.alpha, "target_modules": sorted(kind.sites)}
        return {"peft_type": "LORA", **own, "lora_dropout": 0.0, "bias": "none"}
    if isinstance(kind, IA3):
        own = {"target_modules": sorted(kind.sites), "feedforward_modules": sorted(kind.feedforward)}
        return {"peft_type": "IA3", **own}
    if isinstance(kind, Prefix):
        width = next(iter(kind.shapes.values()))[1]
        own = {"encoder_hidden_size": width, "prefix_projection": False}
        return {"peft_type": "PREFIX_TUNING", **_virtual(kind.config.tokens, width, kind.model), **own}
    assert isinstance(kind, Prompt)
    return {
        "peft_type": "PROMPT_TUNING",
        **_virtual(kind.config.tokens, kind.shapes[PROMPT][1], kind.model),
        "prompt_tuning_init": "RANDOM",
    }


def peft_shapes(kind: DeltaKind) -> dict[str, tuple[int, ...]]:
    """Names and shapes in `adapter_model.safetensors`."""
    if isinstance(kind, Prefix):
        tokens, width = next(iter(kind.shapes.values()))
        return {PROMPT: (tokens, len(kind.shapes) * width)}
    return {_renamed(kind, name): shape for name, shape in kind.shapes.items()}


def to_peft(kind: DeltaKind, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """θ under PEFT's names. A prefix is one matrix there: for each layer its keys, then its values, side by side."""
    if isinstance(kind, Prefix):
        return {PROMPT: torch.cat([theta[name] for name in kind.shapes], dim=1)}
    return {_renamed(kind, name): leaf for name, leaf in theta.items()}


def from_peft(kind: DeltaKind, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_peft`, on tensors of `peft_shapes`."""
    if isinstance(kind, Prefix):
        width = next(iter(kind.shapes.values()))[1]
        parts = torch.split(tensors[PROMPT], width, dim=1)
        return {name: part.contiguous() for name, part in zip(kind.shapes, parts, strict=True)}
    return {name: tensors[_renamed(kind, name)] for name in kind.shapes}


def _renamed(kind: DeltaKind, name: str) -> str:
    return name if isinstance(kind, Prompt) else _WRAPPER + name


def _virtual(tokens: int, width: int, model: nn.Module) -> dict[str, Any]:
    """PEFT finds the shape by itself under the names that BERT has for it, and has to be told elsewhere."""
    config: Any = model.config
    shape = {"num_layers": int(config.num_hidden_layers), "num_attention_heads": int(config.num_attention_heads)}
    return {"num_virtual_tokens": tokens, "token_dim": width, "num_transformer_submodules": 1, **shape}


def _architecture(kind: Prefix) -> str:
    config: Any = kind.model.config
    return str(config.model_type)
