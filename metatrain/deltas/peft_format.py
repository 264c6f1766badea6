"""The format of a delta in PEFT's two files, `adapter_config.json` and `adapter_model.safetensors`.

The attribute `peft` of a delta kind is a `PeftFiles`, which describes these files. It is None if PEFT has no such kind or computes
something else on this model. θ is then written as `delta.safetensors`, with this package's leaf names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]
PROMPT_EMBEDDINGS = "prompt_embeddings"  # the only matrix of PEFT's prompt learning methods, which include prefix tuning


@dataclass(frozen=True)
class PeftFiles:
    """The PEFT files of one delta kind on one base model.

    `essentials`: the entries of `adapter_config.json` that determine what PEFT computes. `shapes`: names and shapes in
    `adapter_model.safetensors`. `to_peft` converts one task's θ to those tensors, and `from_peft` is its inverse.
    """

    essentials: dict[str, Any]
    shapes: dict[str, Shape]
    to_peft: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    from_peft: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]

    def config(self, base_model: str) -> dict[str, Any]:
        """Return the content of `adapter_config.json`, with the name of the base model."""
        common = {"task_type": "FEATURE_EXTRACTION", "base_model_name_or_path": base_model, "inference_mode": True}
        return {**self.essentials, **common}


@dataclass(frozen=True)
class PeftLeaf:
    """The name and shape of a leaf in PEFT's file. A `reshape` converts between the two shapes of a leaf."""

    name: str
    shape: Shape


def in_module(name: str, shape: Shape) -> PeftLeaf:
    """Return the PEFT leaf of a module of the base model. PEFT wraps the model twice, hence the prefix."""
    return PeftLeaf(f"base_model.model.{name}", shape)


def leaf_by_leaf(essentials: dict[str, Any], shapes: Mapping[str, Shape], leaves: Mapping[str, PeftLeaf]) -> PeftFiles:
    """Describe files in which each leaf is a tensor of its own.

    `shapes` and `leaves`: by the name of the leaf in θ, its shape in θ and its PEFT leaf.
    """

    def to_peft(theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {leaves[name].name: leaf.reshape(leaves[name].shape) for name, leaf in theta.items()}

    def from_peft(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensors[leaf.name].reshape(shapes[name]) for name, leaf in leaves.items()}

    return PeftFiles(essentials, {leaf.name: leaf.shape for leaf in leaves.values()}, to_peft, from_peft)


def side_by_side(essentials: dict[str, Any], shapes: Mapping[str, Shape]) -> PeftFiles:
    """Describe files with one matrix: the leaves [P, D] of θ, concatenated along D in their order."""
    tokens, width = next(iter(shapes.values()))

    def to_peft(theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {PROMPT_EMBEDDINGS: torch.cat([theta[name] for name in shapes], dim=1)}

    def from_peft(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        parts = torch.split(tensors[PROMPT_EMBEDDINGS], width, dim=1)
        return {name: part.contiguous() for name, part in zip(shapes, parts, strict=True)}

    return PeftFiles(essentials, {PROMPT_EMBEDDINGS: (tokens, len(shapes) * width)}, to_peft, from_peft)


def virtual_tokens(tokens: int, width: int, config: Any) -> dict[str, Any]:
    """Return the entries that prefix and prompt tuning share. `config` is the base model's.

    They are stated because PEFT reads these numbers only from configurations with BERT's field names.
    """
    shape = {"num_layers": int(config.num_hidden_layers), "num_attention_heads": int(config.num_attention_heads)}
    return {"num_virtual_tokens": tokens, "token_dim": width, "num_transformer_submodules": 1, **shape}
