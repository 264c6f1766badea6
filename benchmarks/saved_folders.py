"""Folders as sentence-transformers saves them, made from tiny models with random weights.

The new layout is what the installed version writes. The old layout has the files of versions before 5: other names of the modules'
types, a flag for each pooling, and `sentence_bert_config.json` with the maximum length and lower-casing.
"""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn

from tests.tiny import WITHOUT_SDPA, save_tiny_model

MAX_LENGTH = 24
PROMPT = "please help me to: "
OLD_KEYS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
POOLINGS: tuple[tuple[str, ...], ...] = (*((name,) for name in OLD_KEYS), ("cls", "mean"), ("max", "weightedmean", "lasttoken"))
REORDERED = ("lasttoken", "mean")
"""A concatenation that only the new layout can express: the old one has a fixed order."""
PROMPTS = ("none", "pooled", "not pooled")
DENSE = ("none", "tanh", "identity, no bias", "residual", "two")
LAYOUTS = ("new", "old")


@dataclass(frozen=True)
class Saved:
    """A saved folder: one value of each dimension of the matrix."""

    architecture: str = "bert"
    pooling: tuple[str, ...] = ("mean",)
    normalized: bool = False
    lower_case: bool = False
    prompt: str = "none"
    dense: str = "none"
    layout: str = "new"

    def values(self) -> dict[str, str]:
        """Return the value of each dimension in words."""
        flags = {True: "yes", False: "no"}
        return {
            "architecture": self.architecture,
            "pooling": " + ".join(self.pooling),
            "normalisation": flags[self.normalized],
            "lower-casing": flags[self.lower_case],
            "prompt": self.prompt,
            "Dense": self.dense,
            "layout": self.layout,
        }


def matrix() -> Iterator[Saved]:
    """Yield the whole matrix on an encoder, and the poolings, prompts and layouts on other architectures.

    These are decoders, and models without fused attention.
    """
    for pooling, normalized, lower, prompt, dense, layout in itertools.product(
        POOLINGS, (False, True), (False, True), PROMPTS, DENSE, LAYOUTS
    ):
        yield Saved("bert", pooling, normalized, lower, prompt, dense, layout)
    for architecture, pooling, prompt, layout in itertools.product(("llama", "qwen3", *WITHOUT_SDPA), POOLINGS, PROMPTS, LAYOUTS):
        yield Saved(architecture, pooling, True, False, prompt, "none", layout)
    yield from (Saved(pooling=REORDERED, prompt=prompt, dense=dense) for prompt, dense in itertools.product(PROMPTS, DENSE))


def save(saved: Saved, parts: Path, folder: Path) -> Path:
    """Save a folder of the matrix, and return it. `parts`: where the tiny models are kept between calls."""
    transformer = parts / saved.architecture
    if not transformer.is_dir():
        save_tiny_model(transformer, architecture=saved.architecture)
    torch.manual_seed(1)
    width = 32 * len(saved.pooling)
    modules: list[nn.Module] = [
        Transformer(str(transformer), max_seq_length=MAX_LENGTH, do_lower_case=saved.lower_case),
        Pooling(32, pooling_mode=saved.pooling, include_prompt=saved.prompt != "not pooled"),
        *_dense(saved.dense, width),
    ]
    if saved.normalized:
        modules.append(Normalize())
    prompts: dict[str, Any] = {} if saved.prompt == "none" else {"prompts": {"task": PROMPT}, "default_prompt_name": "task"}
    SentenceTransformer(modules=modules, device="cpu", **prompts).save(str(folder), create_model_card=False)
    if saved.layout == "old":
        _rewrite_as_old(saved, transformer, folder)
    return folder


def _dense(kind: str, width: int) -> list[nn.Module]:
    modules: dict[str, list[nn.Module]] = {
        "none": [],
        "tanh": [Dense(width, 20)],
        "identity, no bias": [Dense(width, 20, bias=False, activation_function=nn.Identity())],
        "residual": [Dense(width, 20, activation_function=nn.GELU(), use_residual=True)],
        "two": [Dense(width, 64, activation_function=nn.ReLU()), Normalize(), Dense(64, 20, activation_function=nn.Identity())],
    }
    return modules[kind]


def _rewrite_as_old(saved: Saved, transformer: Path, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(transformer / name, folder / name)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": MAX_LENGTH, "do_lower_case": saved.lower_case})
    modules = json.loads((folder / "modules.json").read_text())
    for module in modules:
        module["type"] = "sentence_transformers.models." + module["type"].rpartition(".")[2]
    _write(folder / "modules.json", modules)
    pooling = {key: name in saved.pooling for name, key in OLD_KEYS.items()}
    prompt = {} if saved.prompt != "not pooled" else {"include_prompt": False}
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **pooling, **prompt})


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def refused() -> dict[str, Callable[[Path, Path], Path]]:
    """Return folders that cannot be reproduced, by what they have.

    Each is a function from (parts, folder) to the saved folder.
    """

    def with_module(kind: str) -> Callable[[Path, Path], Path]:
        def make(parts: Path, folder: Path) -> Path:
            save(Saved(), parts, folder)
            modules = json.loads((folder / "modules.json").read_text())
            modules.append({"idx": 2, "name": "2", "path": f"2_{kind}", "type": f"sentence_transformers.models.{kind}"})
            _write(folder / "modules.json", modules)
            return folder

        return make

    def with_settings(file: str, **settings: Any) -> Callable[[Path, Path], Path]:
        def make(parts: Path, folder: Path) -> Path:
            path = save(Saved(layout="old"), parts, folder) / file
            _write(path, {**json.loads(path.read_text()), **settings})
            return folder

        return make

    message = {"method": "forward", "method_output_name": "last_hidden_state"}
    return {
        **{f"a module {kind}": with_module(kind) for kind in ("CNN", "LSTM", "WordWeights", "WeightedLayerPooling", "Router")},
        "an unknown pooling": with_settings("1_Pooling/config.json", pooling_mode="attention"),
        "a chat template": with_settings("sentence_bert_config.json", modality_config={"text": message, "message": message}),
        "a sparse encoder": with_settings("config_sentence_transformers.json", model_type="SparseEncoder"),
        "options of the configuration": with_settings("sentence_bert_config.json", config_args={"is_decoder": True}),
    }
