"""Tiny models with random weights, one per architecture, and the modules that deltas change."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    Dinov2Config,
    Dinov2Model,
    EfficientNetConfig,
    EfficientNetModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    ModernBertConfig,
    ModernBertModel,
    Qwen2Config,
    Qwen2Model,
    ViTConfig,
    ViTModel,
)

_WORDS = {"vocab_size": 40, "max_position_embeddings": 32, "initializer_range": 0.3}
_SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_ENDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
_GROUPED = {**_WORDS, **_SHAPE, **_ENDS, "num_key_value_heads": 2}
_IMAGES = {**_SHAPE, "image_size": 16, "patch_size": 4, "initializer_range": 0.3}
_BLOCKS = {
    "image_size": 16,
    "width_coefficient": 0.5,
    "depth_coefficient": 1.0,
    "hidden_dim": 640,
    "in_channels": [32, 16],
    "out_channels": [16, 24],
    "kernel_sizes": [3, 3],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [2, 3],
    "depthwise_padding": [],
    "initializer_range": 0.5,
    "batch_norm_momentum": 1.0,
}


@dataclass(frozen=True)
class Architecture:
    """A tiny model of one architecture, and the names of its modules that deltas can change.

    Arguments:
        make: a function that takes the name of an attention implementation and builds the model.
        projections: modules for LoRA and (IA)³.
        feedforward: the module whose input (IA)³ rescales.
        closing: modules after which a bottleneck is inserted.
        text: True if the model takes tokens, False if it takes images.
        table: True if the model has a table of position embeddings.
    """

    make: Callable[[str], nn.Module]
    projections: tuple[str, ...]
    feedforward: str
    closing: tuple[str, ...]
    text: bool = True
    table: bool = False


def _maker(model: Any, config: Any, **options: Any) -> Callable[[str], nn.Module]:
    def make(attention: str) -> nn.Module:
        torch.manual_seed(0)
        model_config = config(**options)
        if config is not EfficientNetConfig:
            model_config._attn_implementation = attention
        built: nn.Module = model(model_config).requires_grad_(False)
        if config is EfficientNetConfig:  # a forward pass in training mode sets the running statistics of batch normalisation
            built.train()(torch.randn(8, 3, 16, 16))
        return built.eval()

    return make


ARCHITECTURES = {
    "bert": Architecture(
        _maker(BertModel, BertConfig, **_WORDS, **_SHAPE), ("query", "value"), "intermediate.dense", ("output.dense",), table=True
    ),
    "modernbert": Architecture(
        _maker(ModernBertModel, ModernBertConfig, **_WORDS, **_SHAPE, **_ENDS, cls_token_id=2, sep_token_id=3),
        ("Wqkv",),
        "Wi",
        ("Wo",),
    ),
    "gpt2": Architecture(
        _maker(
            GPT2Model, GPT2Config, vocab_size=40, n_positions=32, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3, **_ENDS
        ),
        ("c_attn",),
        "mlp.c_fc",
        ("c_proj",),
        table=True,
    ),
    "llama": Architecture(_maker(LlamaModel, LlamaConfig, **_GROUPED), ("q_proj", "v_proj"), "down_proj", ("o_proj", "down_proj")),
    "qwen2": Architecture(_maker(Qwen2Model, Qwen2Config, **_GROUPED), ("q_proj", "v_proj"), "down_proj", ("o_proj", "down_proj")),
    "vit": Architecture(_maker(ViTModel, ViTConfig, **_IMAGES), ("q_proj", "v_proj"), "fc1", ("fc2",), text=False),
    "dinov2": Architecture(
        _maker(Dinov2Model, Dinov2Config, **_IMAGES), ("q_proj", "v_proj"), "fc1", ("o_proj", "fc2"), text=False
    ),
    "efficientnet": Architecture(
        _maker(EfficientNetModel, EfficientNetConfig, **_BLOCKS),
        ("expand_conv", "squeeze_excite.expand"),
        "project_conv",
        ("project_conv", "top_conv"),
        text=False,
    ),
}


def draw_rows(architecture: Architecture, count: int) -> list[Tensor]:
    """Return `count` random inputs: rows of token ids [L] of unequal lengths, or images [3, 16, 16]."""
    generator = torch.Generator().manual_seed(5)
    if architecture.text:
        return [torch.randint(4, 40, (3 + 2 * (i % 4),), generator=generator) for i in range(count)]
    return [torch.randn(3, 16, 16, generator=generator) for _ in range(count)]


def collate(architecture: Architecture, rows: list[Tensor]) -> dict[str, Tensor]:
    """Batch the rows into the keyword arguments of the model's forward call. Token rows are padded."""
    if not architecture.text:
        return {"pixel_values": torch.stack(rows)}
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return {"input_ids": padded, "attention_mask": mask}
