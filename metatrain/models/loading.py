"""Loading of base models from their files."""

from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from metatrain.errors import BaseModelError
from metatrain.models import source
from metatrain.models.backbone import Attention
from metatrain.models.base import Base
from metatrain.models.inputs.text import TextInputs, TextSpec
from metatrain.models.precision import Precision, default_device, resolve


def load_base(
    name: str = source.DEFAULT_MODEL,
    *,
    precision: Precision = "auto",
    attention: Attention = "auto",
    device: torch.device | None = None,
    max_length: int | None = None,
    hub: source.Hub = source.Hub(),
) -> Base:
    """Load a frozen base model by short name, hub name or local path.

    `attention`: "auto" selects the faster kind. That is "eager" for bfloat16 on a CPU, where the backward pass of PyTorch's fused
    attention takes longer than the rest of the model (docs/decisions/0005), and "sdpa" everywhere else. `device`: None selects the
    GPU if there is one. `max_length`: the maximum number of tokens in a row; None takes it from the model's files. Raises
    BaseModelError if the model is not found or does not load, or if its weights differ from the known ones
    (`source.KNOWN_WEIGHTS`).
    """
    cast(Any, transformers_logging).disable_progress_bar()
    device = device or default_device()
    dtype = resolve(precision, device)
    if attention == "auto":
        attention = "eager" if device.type == "cpu" and dtype == torch.bfloat16 else "sdpa"
    folder = source.locate(name, hub)
    digest = source.weights_digest(folder)
    source.check_known_weights(name, digest)
    return _load_text(name, folder, digest, attention, dtype, device, max_length)


def _load_text(
    name: str, folder: Path, digest: str, attention: Attention, dtype: torch.dtype, device: torch.device, max_length: int | None
) -> Base:
    pooling, stated_length = source.sentence_transformers_settings(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False, local_files_only=True)
        model = AutoModel.from_pretrained(folder, **source.LOCAL, config=config, attn_implementation=attention, dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"base.model: {folder} does not load as a text encoder: {str(error).splitlines()[0]}") from error
    # The position table of some models (RoBERTa) also has entries for padding, which only the tokenizer's limit excludes. The
    # load-time probe checks that a row of the maximum length works.
    positions = min(getattr(config, "max_position_embeddings", 512), tokenizer.model_max_length)
    spec = TextSpec(
        model=name,
        weights_sha256=digest,
        tokenizer_sha256=source.tokenizer_digest(folder),
        pooling=cast(Literal["mean", "cls"], pooling),
        max_length=min(max_length or stated_length or positions, positions),
    )
    return text_base(model.to(device), tokenizer, spec, attention=attention)


def text_base(model: nn.Module, tokenizer: Any, spec: TextSpec, *, attention: Attention) -> Base:
    """Combine a loaded text encoder and its tokenizer into a base model."""
    parameter = next(model.parameters())
    width = int(cast(Any, model).config.hidden_size)
    return Base(
        model, TextInputs(tokenizer, spec, width=width, device=parameter.device, dtype=parameter.dtype), attention=attention
    )
