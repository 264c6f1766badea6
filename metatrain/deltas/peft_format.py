"""The format of a delta in PEFT's two files, `adapter_config.json` and `adapter_model.safetensors`.

The property `peft` of a delta kind is a `PeftFiles`, which describes these files. If PEFT has no such kind, or would compute
something else on this model, the property is None, and θ is written to `delta.safetensors` with this package's leaf names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from quickstudy.one_line import shown
from torch import Tensor

Shape = tuple[int, ...]
PROMPT_EMBEDDINGS = "prompt_embeddings"  # the only matrix of PEFT's prompt learning methods, which include prefix tuning
_WITHOUT_EFFECT = frozenset(
    {
        *("base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version", "auto_mapping"),
        *("megatron_core", "qalora_group_size"),  # settings of options that are off
    }
)
"""Entries of `adapter_config.json` that do not change what PEFT computes with weights that are there, whatever their value."""
_INITIAL_VALUES = {"init_lora_weights": (True, False, "gaussian"), "init_ia3_weights": (True, False)}
"""Entries that say how the weights started, with the values that leave the base model as it is. Others change its weights too."""


@dataclass(frozen=True)
class PeftFiles:
    """The PEFT files of one delta kind on one base model.

    `essentials`: the entries of `adapter_config.json` that determine what PEFT computes. `shapes`: the names and shapes of the
    tensors in `adapter_model.safetensors`. `to_peft`: converts one task's θ to these tensors. `from_peft`: the inverse of
    `to_peft`.
    """

    essentials: dict[str, Any]
    shapes: dict[str, Shape]
    to_peft: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    from_peft: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]

    def config(self, base_model: str) -> dict[str, Any]:
        """Return the content of `adapter_config.json`. `base_model`: the name of the base model."""
        common = {"task_type": "FEATURE_EXTRACTION", "base_model_name_or_path": base_model, "inference_mode": True}
        return {**self.essentials, **common}

    def problem_in(self, config: Mapping[str, Any]) -> str | None:
        """Return what is wrong with the content of `adapter_config.json`, or None.

        Nothing is wrong if PEFT computes the same with it.

        Entries are checked against those that this version understands. Any other one must be off: null, false or empty.
        """
        for key, value in self.essentials.items():
            if not _equal(config.get(key), value):
                return f"{key}: expected {value!r} as in initialization.json, got {_shown(config.get(key))}"
        for key in sorted(config.keys() - self.essentials.keys() - _WITHOUT_EFFECT):
            value = config[key]
            if key in _INITIAL_VALUES:
                if value not in _INITIAL_VALUES[key]:
                    return f"{key}: {_shown(value)} changes the base model, so its adapter fits no other one"
            elif value:
                return f"{shown(key)}: expected nothing (an unknown option), got {_shown(value)}"
        return None


def _equal(stated: Any, expected: Any) -> bool:
    """Compare two values. Lists are compared without order, because PEFT writes sets."""
    if isinstance(stated, list) and isinstance(expected, list):
        return sorted(map(str, stated)) == sorted(map(str, expected))
    return bool(stated == expected)


def _shown(value: Any) -> str:
    return f"{shown(value)} with {len(value)} entries" if isinstance(value, list | dict) else shown(value)


@dataclass(frozen=True)
class PeftLeaf:
    """The name and shape that one leaf of θ has in PEFT's file.

    Its shape in θ may differ, but only by a `reshape`.
    """

    name: str
    shape: Shape


def in_module(name: str, shape: Shape) -> PeftLeaf:
    """Return the PEFT leaf of a leaf that belongs to a module of the base model.

    `name`: the name in θ. PEFT's name has the prefix `base_model.model.`, because PEFT wraps the model twice. `shape`: PEFT's
    shape.
    """
    return PeftLeaf(f"base_model.model.{name}", shape)


def leaf_by_leaf(essentials: dict[str, Any], shapes: Mapping[str, Shape], leaves: Mapping[str, PeftLeaf]) -> PeftFiles:
    """Describe PEFT files that store each leaf of θ as a separate tensor.

    `shapes` and `leaves` map the name of each leaf in θ to its shape in θ and to its PEFT leaf. `essentials`: as in `PeftFiles`.
    """

    def to_peft(theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {leaves[name].name: leaf.reshape(leaves[name].shape) for name, leaf in theta.items()}

    def from_peft(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensors[leaf.name].reshape(shapes[name]) for name, leaf in leaves.items()}

    return PeftFiles(essentials, {leaf.name: leaf.shape for leaf in leaves.values()}, to_peft, from_peft)


def side_by_side(essentials: dict[str, Any], shapes: Mapping[str, Shape]) -> PeftFiles:
    """Describe PEFT files that store all leaves [P, D] of θ in one matrix, concatenated along D.

    `shapes`: the shapes in θ, in the order of the concatenation. `essentials`: as in `PeftFiles`.
    """
    tokens, width = next(iter(shapes.values()))

    def to_peft(theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {PROMPT_EMBEDDINGS: torch.cat([theta[name] for name in shapes], dim=1)}

    def from_peft(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        parts = torch.split(tensors[PROMPT_EMBEDDINGS], width, dim=1)
        return {name: part.contiguous() for name, part in zip(shapes, parts, strict=True)}

    return PeftFiles(essentials, {PROMPT_EMBEDDINGS: (tokens, len(shapes) * width)}, to_peft, from_peft)


def virtual_tokens(tokens: int, width: int, config: Any) -> dict[str, Any]:
    """Return the entries of `adapter_config.json` that prefix and prompt tuning share.

    `tokens`: P. `width`: D. `config`: the configuration of the base model. The numbers of layers and heads are written explicitly,
    because PEFT can read them only from model configurations with BERT's field names.
    """
    shape = {"num_layers": int(config.num_hidden_layers), "num_attention_heads": int(config.num_attention_heads)}
    return {"num_virtual_tokens": tokens, "token_dim": width, "num_transformer_submodules": 1, **shape}
