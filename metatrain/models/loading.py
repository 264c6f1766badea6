"""Loading of base models from their files, and their descriptions without weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from quickstudy.one_line import shown
from tokenizers import normalizers
from torch import nn
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from metatrain.models import source
from metatrain.models.backbone import Attention
from metatrain.models.base import Base
from metatrain.models.description import UnloadedBase
from metatrain.models.files import check_no_pointer, errors_of, is_present, not_loadable, read_object, read_object_if_present
from metatrain.models.inputs.text import SHORTEST_LIMIT, TextInputs, TextSpec, closing_tokens
from metatrain.models.layout import Layout, read_layout
from metatrain.models.modules import Module
from metatrain.models.pooling import Pooler, Pooling
from metatrain.models.precision import Precision, default_device, resolve
from metatrain.models.weights import describe_model, embedding_rows, has_fused_attention, load_model, positions_of, tensors_in

_DEFAULT_POSITIONS = 512
_OLD_POOLINGS = ("mean", "cls")
_TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_CODE = ("AutoModel", "AutoConfig", "AutoTokenizer")
"""The entries of `auto_map` that features depend on; others define heads."""
_PROBE_TEXT = "a row of a few words"


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
    attention takes longer than the rest of the model (docs/decisions/0005), and for an architecture without fused attention (MPNet,
    DeBERTa, Gemma 2). Everywhere else it is "sdpa". `device`: None selects the GPU if there is one. `max_length`: the maximum
    number of tokens in a row; None takes it from the model's files. Raises BaseModelError if the model is not found or does not
    load, if its files do not have every parameter, if they state something that cannot be reproduced, if the architecture does not
    support the attention asked for, or if the weights differ from the known ones (`source.KNOWN_WEIGHTS`).
    """
    device = device or default_device()
    dtype = resolve(precision, device)
    files = _files(name, max_length, hub)
    if attention == "auto":
        slow = device.type == "cpu" and dtype == torch.bfloat16
        attention = "eager" if slow or not has_fused_attention(files.config) else "sdpa"
    model = load_model(files.layout.transformer, files.config, dtype=dtype, attention=attention)
    base = text_base(model.to(device), files.tokenizer, files.spec, attention=attention, modules=files.layout.modules)
    _check_sample(base, files.layout)
    return base


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
    architecture = describe_model(files.layout.transformer, files.config)
    width = int(cast(Any, architecture).config.hidden_size)
    inputs = TextInputs(files.tokenizer, files.spec, width=width, device=cpu, dtype=dtype, modules=files.layout.modules)
    return UnloadedBase(architecture, inputs, str(dtype).removeprefix("torch."))


@dataclass(frozen=True)
class _TextFiles:
    """A text encoder's files, as far as they are read without the weights of its transformer."""

    layout: Layout
    config: Any
    tokenizer: Any
    spec: TextSpec


def _files(name: str, max_length: int | None, hub: source.Hub) -> _TextFiles:
    cast(Any, transformers_logging).disable_progress_bar()
    layout = read_layout(source.locate(name, hub))
    folder = layout.transformer
    if is_present(folder, "adapter_config.json"):
        raise not_loadable(folder, "it is a PEFT adapter (adapter_config.json); merge it into its model and save that")
    digest = source.weights_digest(folder)
    source.check_known_weights(name, digest)
    tokenizer_digest = source.tokenizer_digest(folder)
    _check_no_code(folder)
    with errors_of(folder, "config.json"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    _check_config(folder, config, parameters=len(tensors_in(folder)))
    for file in _TOKENIZER_FILES:
        check_no_pointer(folder, file)
    with errors_of(folder, "tokenizer files"):
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False, local_files_only=True)
    _check_tokenizer(layout, config, tokenizer)
    spec = TextSpec(
        model=name,
        weights_sha256=digest,
        tokenizer_sha256=tokenizer_digest,
        pooling=_pooling(layout),
        max_length=_max_length(layout, config, tokenizer, max_length),
        modules=tuple(module.spec for module in layout.modules),
        prompt=layout.prompt,
        pool_prompt=layout.pool_prompt or not layout.prompt,
        lower_case=layout.lower_case and _convert_to_lower_case(tokenizer),
        closing_tokens=closing_tokens(tokenizer) if layout.stated else 1,
    )
    _check_features(layout, config, tokenizer)
    return _TextFiles(layout, config, tokenizer, _with_settings(spec, folder))


def _check_no_code(folder: Path) -> None:
    """Raise BaseModelError if the model or its tokenizer is defined by code of its own.

    Such code is never run. The stock class of the same type would load, and its features would not be those that the authors meant.
    """
    files = {"config.json": read_object(folder, "config.json")}
    files["tokenizer_config.json"] = read_object_if_present(folder, "tokenizer_config.json")
    for file, content in files.items():
        named = content.get("auto_map") or {}
        code = next((named[kind] for kind in _CODE if kind in named), None) if isinstance(named, dict) else named
        if code is not None:
            raise not_loadable(
                folder,
                f"{file}: auto_map names code of the model's own ({shown(code)}), which is not run; "
                "remove auto_map if transformers gives the same features",
            )


def _check_sample(base: Base, layout: Layout) -> None:
    """Raise BaseModelError unless a few texts have features of length 1.

    Weights with NaN or zeros give others.
    """
    with torch.no_grad(), errors_of(layout.root, "a run of the model"):
        lengths = base.features(None, base.inputs.collate(base.inputs.sample())).norm(dim=-1)
    if not bool((lengths > 0.5).all()):  # also False for NaN
        raise not_loadable(layout.root, "its features are not finite or all zero, so its weights are damaged or were never set")


def _with_settings(spec: TextSpec, folder: Path) -> TextSpec:
    """Add the digest of the settings, unless the spec is one that earlier versions knew without it."""
    new = {field for field in spec.identity if not TextSpec.model_fields[field].is_required()}
    if not new and spec.pooling in _OLD_POOLINGS:
        return spec
    return spec.model_copy(update={"settings_sha256": source.settings_digest(folder)})


def _pooling(layout: Layout) -> Pooling:
    return layout.poolings[0] if len(layout.poolings) == 1 else layout.poolings or "mean"


def _check_config(folder: Path, config: Any, *, parameters: int) -> None:
    """Raise BaseModelError if the transformer cannot be a text encoder.

    Raises it too if the weights are in a file that has no part in the digest. `parameters`: their number in the files.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise not_loadable(folder, f"config.json: {config.model_type} is an encoder-decoder, which is not supported")
    if not isinstance(getattr(config, "hidden_size", None), int):
        raise not_loadable(folder, f"config.json: {config.model_type} has no hidden_size, so it is no text encoder")
    layers = getattr(config, "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > parameters:  # it would take very long to build so many
        raise not_loadable(folder, f"config.json: num_hidden_layers is {layers}, and the file has {parameters} parameters in all")
    if getattr(config, "transformers_weights", None) is not None:
        raise not_loadable(folder, "config.json: transformers_weights is not supported; expected the weights in model.safetensors")


def _check_tokenizer(layout: Layout, config: Any, tokenizer: Any) -> None:
    """Raise BaseModelError if the tokenizer does not work, or if it cannot do what the folder states."""
    folder, longest = layout.transformer, tokenizer.model_max_length
    if (layout.stated or layout.lower_case) and not tokenizer.is_fast:
        raise not_loadable(folder, f"{type(tokenizer).__name__} is not a fast tokenizer, which modules.json and lower-casing need")
    if not isinstance(longest, int | float) or not longest >= SHORTEST_LIMIT:
        expected = f"expected a number of at least {SHORTEST_LIMIT}"
        raise not_loadable(folder, f"tokenizer_config.json: model_max_length: {expected}, got {longest!r}")
    with errors_of(folder, "tokenizer files"):  # some errors in tokenizer.json show only in a call
        tokenizer([_PROBE_TEXT, _PROBE_TEXT[0], layout.prompt], truncation=False, padding=False, verbose=False)
        token, highest = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
        rows = embedding_rows(config)
    if highest >= rows:
        problem = f"token {shown(token, 30)} has the id {highest}, and the model has embeddings for {rows} ids"
        raise not_loadable(folder, f"tokenizer.json: {problem}, from 0 to {rows - 1}")


def _check_features(layout: Layout, config: Any, tokenizer: Any) -> None:
    """Raise BaseModelError if features would differ from those of sentence-transformers.

    Raises it too if a module does not take the features of the one before it.
    """
    if not layout.stated:
        return
    if tokenizer.truncation_side != "right":
        in_config = "truncation_side" in read_object_if_present(layout.transformer, "tokenizer_config.json")
        setting = "tokenizer_config.json: truncation_side" if in_config else "tokenizer.json: truncation.direction"
        raise not_loadable(layout.root, f"{setting}: expected 'right', got {tokenizer.truncation_side!r}, which is not supported")
    if any(tokenizer([_PROBE_TEXT], padding=False, verbose=False).get("token_type_ids", [[0]])[0]):
        raise not_loadable(layout.root, "token_type_ids other than 0, which this tokenizer gives, are not supported")
    try:
        Pooler(_pooling(layout), modules=layout.modules).width(int(config.hidden_size))
    except ValueError as error:
        raise not_loadable(layout.root, f"modules.json: {error}") from error


def _max_length(layout: Layout, config: Any, tokenizer: Any, asked: int | None) -> int:
    """Return the maximum number of tokens in a row.

    It is `asked` or the number that the files state, but not more than the model has positions for. If the files state none, it is
    the tokenizer's limit. The load-time probe checks that a row of this length works.
    """
    with errors_of(layout.transformer, "config.json"):
        positions = positions_of(config)
    stated, limit = layout.max_length, min(tokenizer.model_max_length, positions or _DEFAULT_POSITIONS)
    if stated is not None and stated > limit:
        limit = min(stated, positions or stated)
    found = min(asked or stated or limit, limit)
    if found < SHORTEST_LIMIT:
        raise not_loadable(layout.root, f"the maximum length is {found} tokens, expected at least {SHORTEST_LIMIT}")
    return int(found)


def _convert_to_lower_case(tokenizer: Any) -> bool:
    """Let a tokenizer convert texts to lower case first.

    sentence-transformers does so for `do_lower_case`. Returns False, and changes nothing, if its own normaliser does so
    already. A BertNormalizer that converts to lower case gives the same for a text and for the text in lower case.
    """
    normalizer = tokenizer.backend_tokenizer.normalizer
    parts = (
        list(cast(Any, normalizer)) if isinstance(normalizer, normalizers.Sequence) else [] if normalizer is None else [normalizer]
    )
    of_bert = bool(parts) and isinstance(parts[0], normalizers.BertNormalizer) and parts[0].lowercase
    if of_bert or any(isinstance(part, normalizers.Lowercase) for part in parts):
        return False
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *parts])
    return True


def text_base(model: nn.Module, tokenizer: Any, spec: TextSpec, *, attention: Attention, modules: Sequence[Module] = ()) -> Base:
    """Combine a loaded text encoder, its tokenizer and the modules after its pooling into a base model."""
    parameter = next(model.parameters())
    width, device, dtype = int(cast(Any, model).config.hidden_size), parameter.device, parameter.dtype
    placed = [module.to(device, torch.promote_types(dtype, torch.float32)) for module in modules]
    inputs = TextInputs(tokenizer, spec, width=width, device=device, dtype=dtype, modules=placed)
    return Base(model, inputs, attention=attention)
