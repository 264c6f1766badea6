"""Copies of a tiny model's folder with the files of sentence-transformers, written by hand."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

OLD = "sentence_transformers.models."


def copied(folder: Path, to: Path) -> Path:
    """Copy a model's folder."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    return to


def write(folder: Path, name: str, content: Any) -> Path:
    """Write a JSON file into a model's folder, and return the folder."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return folder


def listed(folder: Path, *modules: tuple[str, str], prefix: str = OLD) -> Path:
    """Write `modules.json` with modules of these (type, path), and return the folder."""
    entries = [{"idx": i, "name": str(i), "path": path, "type": prefix + kind} for i, (kind, path) in enumerate(modules)]
    write(folder, "modules.json", entries)
    return folder


def pooled_by(folder: Path, *, pooling: Any = "mean", **settings: Any) -> Path:
    """Make a folder a sentence-transformers model with a transformer and a pooling, and return it."""
    write(folder, "1_Pooling/config.json", {"embedding_dimension": 32, "pooling_mode": pooling, **settings})
    return listed(folder, ("Transformer", ""), ("Pooling", "1_Pooling"))


def change_weights(folder: Path, changes: Mapping[str, Tensor | None], *, prefix: str = "") -> Path:
    """Add or replace tensors in `model.safetensors`, or remove those that are None.

    `prefix` is put before the other names.
    """
    weights = {prefix + name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if name not in changes}
    weights |= {name: tensor for name, tensor in changes.items() if tensor is not None}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder
