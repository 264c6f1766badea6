"""Loading of base models from their files, and their descriptions without weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from metatrain.errors import BaseModelError
from metatrain.models import source
from metatrain.models.backbone import Attention
from metatrain.models.base import Base
from metatrain.models.description import UnloadedBase
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
    device = device or default_device()
    dtype = resolve(precision, device)
    if attention == "auto":
        attention = "eager" if device.type == "cpu" and dtype == torch.bfloat16 else "sdpa"
    files = _files(name, max_length, hub)
    with _errors_of(files.folder):
        model = AutoModel.from_pretrained(
            files.folder, **source.LOCAL, config=files.config, attn_implementation=attention, dtype=dtype
        )
    return text_base(model.to(device), files.tokenizer, files.spec, attention=attention)


def describe_base(
    name: str = source.DEFAULT_MODEL,
    *,
    precision: Precision = "auto",
    device: torch.device | None = None,
    max_length: int | None = None,
    hub: source.Hub = source.Hub(),
) -> UnloadedBase:
    """Return the description of a base model, without loading its weights.

    It has the digest of the base model that `load_base` returns for the same arguments. The file of the weights is read once, for
    its sha256, but never held in memory. Raises BaseModelError as `load_base` does.
    """
    files = _files(name, max_length, hub)
    dtype, cpu = resolve(precision, device or default_device()), torch.device("cpu")
    with _errors_of(files.folder), torch.device("meta"):
        architecture = cast(Any, AutoModel).from_config(files.config, trust_remote_code=False)
    inputs = TextInputs(files.tokenizer, files.spec, width=int(architecture.config.hidden_size), device=cpu, dtype=dtype)
    return UnloadedBase(architecture, inputs, str(dtype).removeprefix("torch."))


@dataclass(frozen=True)
class _TextFiles:
    """A text encoder's files, as far as they are read without its weights."""

    folder: Path
    config: Any
    tokenizer: Any
    spec: TextSpec


def _files(name: str, max_length: int | None, hub: source.Hub) -> _TextFiles:
    cast(Any, transformers_logging).disable_progress_bar()
    folder = source.locate(name, hub)
    digest = source.weights_digest(folder)
    source.check_known_weights(name, digest)
    pooling, stated_length = source.sentence_transformers_settings(folder)
    with _errors_of(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False, local_files_only=True)
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
    return _TextFiles(folder, config, tokenizer, spec)


@contextmanager
def _errors_of(folder: Path) -> Iterator[None]:
    """Raise BaseModelError in place of the errors of transformers for files that it cannot use."""
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise BaseModelError(f"base.model: {folder} does not load as a text encoder: {str(error).splitlines()[0]}") from error


def text_base(model: nn.Module, tokenizer: Any, spec: TextSpec, *, attention: Attention) -> Base:
    """Combine a loaded text encoder and its tokenizer into a base model."""
    parameter = next(model.parameters())
    width = int(cast(Any, model).config.hidden_size)
    return Base(
        model, TextInputs(tokenizer, spec, width=width, device=parameter.device, dtype=parameter.dtype), attention=attention
    )
