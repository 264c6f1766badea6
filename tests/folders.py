"""Copies of a tiny model's folder with the files of sentence-transformers, written by hand."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from metatrain.errors import BaseModelError
from metatrain.models.loading import describe_base, load_base

OLD = "sentence_transformers.models."
CPU = torch.device("cpu")
Change = Callable[[Path], Any]
"""A change to a model's folder, such as a file that is cut."""


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


def refusals(folder: Path) -> list[str]:
    """Return the messages with which a folder is refused, with its weights and by its description alone."""
    found = []
    for read in (load_base, describe_base):
        with pytest.raises(BaseModelError) as error:
            read(str(folder), precision="float32", device=CPU)
        message = str(error.value)
        assert message.startswith("base.model: ") and len(message) < 300 and message.isprintable(), message
        found.append(message)
    return found


def pointer(name: str) -> Change:
    """Return the change of a file to a Git LFS pointer."""
    content = "version https://git-lfs.github.com/spec/v1\noid sha256:53aa\nsize 90868376\n"
    return lambda folder: (folder / name).write_text(content)


def text(name: str, content: str | bytes) -> Change:
    """Return the change of a file to this content."""
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
