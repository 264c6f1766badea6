"""The transformer of a base model, with every parameter from its file.

transformers fills parameters that the file lacks with random numbers and reports it in its log only. Here they are an error, and so
are parameters of another shape, those of whole numbers, and those that the model does not know. Two kinds of tensors are left
aside, because no hidden state depends on them: poolers, and the heads of a file that was saved with one. In such a file the
encoder's parameters begin with the name of the encoder (`bert.`), and a head is what stands beside it (`cls.`, `lm_head.`).
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModel

from metatrain.models import source
from metatrain.models.files import StoredTensor, errors_of, is_present, not_loadable, read_object, stored_tensors
from metatrain.models.precision import is_finite

_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_UNUSED = "pooler"


def load_model(folder: Path, config: Any, *, dtype: torch.dtype, attention: str) -> nn.Module:
    """Load the transformer in `folder` on the CPU.

    Raises BaseModelError unless all parameters that hidden states depend on come from its files.
    """
    tensors = tensors_in(folder)
    with errors_of(folder), _without_report():
        model, report = AutoModel.from_pretrained(
            folder,
            **source.LOCAL,
            config=config,
            attn_implementation=attention,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    _check_parameters(folder, model, tensors, report)
    _check_finite(folder, model, tensors)
    return cast(nn.Module, model)


def _check_finite(folder: Path, model: Any, found: Mapping[str, StoredTensor]) -> None:
    """Raise BaseModelError, which names a tensor, if one from the files has NaN or infinite numbers.

    A row of word embeddings shows in no run but those of the texts with that word. `found`: the tensors in the files.
    """
    for name, tensor in model.state_dict().items():
        in_file = name in found or f"{model.base_model_prefix}.{name}" in found
        if in_file and name.partition(".")[0] != _UNUSED and not is_finite(tensor):
            raise not_loadable(folder, f"parameter {name} has NaN or infinite numbers in {str(model.dtype).removeprefix('torch.')}")


def describe_model(folder: Path, config: Any) -> nn.Module:
    """Return the transformer in `folder` on PyTorch's meta device.

    Its parameters have shapes and no values. Raises BaseModelError as `load_model` does. Of the weights, only names and shapes
    are read.
    """
    tensors = tensors_in(folder)
    with errors_of(folder), _without_report():
        kind = type(_architecture(config))
        model, report = cast(Any, kind).from_pretrained(
            None,
            config=config,
            state_dict={name: torch.empty(stored.shape, device="meta") for name, stored in tensors.items()},
            device_map={"": torch.device("meta")},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    _check_parameters(folder, model, tensors, report)
    return cast(nn.Module, model)


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep transformers from logging a table of parameters.

    `_check_parameters` decides which of them are an error.
    """
    logger = logging.getLogger("transformers.modeling_utils")

    def errors_only(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger.addFilter(errors_only)
    try:
        yield
    finally:
        logger.removeFilter(errors_only)


def positions_of(config: Any) -> int | None:
    """Return how many tokens of a row the model has positions for.

    Returns None if its configuration states no number. The position tables of RoBERTa and its relatives also have entries for
    padding, up to the padding's own number.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    for module in _architecture(config).modules():
        padding, table = getattr(module, "padding_idx", None), getattr(module, "position_embeddings", None)
        if isinstance(padding, int) and isinstance(table, nn.Embedding):
            return positions - padding - 1
    return positions


def embedding_rows(config: Any) -> int:
    """Return the number of token ids that the architecture has embeddings for."""
    return int(cast(Any, _architecture(config)).get_input_embeddings().num_embeddings)


def has_fused_attention(config: Any) -> bool:
    """Return True if the architecture supports PyTorch's fused attention, "sdpa".

    Its class in transformers declares it.
    """
    return bool(cast(Any, _architecture(config))._supports_sdpa)


def _architecture(config: Any) -> nn.Module:
    with torch.device("meta"):
        return cast(nn.Module, cast(Any, AutoModel).from_config(config, trust_remote_code=False))


def tensors_in(folder: Path) -> dict[str, StoredTensor]:
    """Return the shapes and dtypes of all tensors in the files of the weights, by name.

    Raises BaseModelError if a file is missing or cannot be used.
    """
    if is_present(folder, _FILE) or not is_present(folder, _INDEX):
        return stored_tensors(folder, _FILE)
    files = read_object(folder, _INDEX).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) and Path(file).name == file for file in files.values()):
        raise not_loadable(folder, f"{_INDEX}: expected a weight_map from parameters to files in this folder")
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(files.values())):
        tensors |= stored_tensors(folder, file)
    return tensors


def _check_parameters(folder: Path, model: Any, found: Mapping[str, StoredTensor], report: Mapping[str, Any]) -> None:
    """Raise BaseModelError if a parameter is missing, has another shape, or is not part of the model.

    Raises it too if a parameter has no floating-point numbers. The message names one. `found`: the tensors in the files. `report`:
    the loading info of transformers.
    """
    prefix = f"{model.base_model_prefix}."
    parts = {name.partition(".")[0] for name in model.state_dict()}
    with_head = any(name.startswith(prefix) and name.removeprefix(prefix).partition(".")[0] in parts for name in found)

    def used(name: str) -> bool:
        first = name.removeprefix(prefix).partition(".")[0]
        outside = with_head and not name.startswith(prefix) and first not in parts
        return first != _UNUSED and not outside

    for problem, names in (
        ("the file lacks the parameter", report["missing_keys"]),
        ("the file has an unknown parameter", report["unexpected_keys"]),
    ):
        if left := sorted(filter(used, names)):
            raise not_loadable(folder, f"{problem} {left[0]}" + (f" and {len(left) - 1} more" if len(left) > 1 else ""))
    for name, in_file, expected in sorted(report["mismatched_keys"]):
        if used(name):
            raise not_loadable(folder, f"parameter {name} has shape {list(in_file)} in the file, expected {list(expected)}")
    parameters = {name for name, _ in model.named_parameters()}
    for name, stored in sorted(found.items()):  # transformers would convert whole numbers without a word
        if not stored.is_floating and used(name) and {name, name.removeprefix(prefix)} & parameters:
            raise not_loadable(folder, f"parameter {name} has dtype {stored.dtype} in the file, expected floating-point numbers")
    if problems := [*report["error_msgs"]]:
        raise not_loadable(folder, problems[0])
