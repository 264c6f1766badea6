"""Strict reading and atomic writing of tensor and JSON files, and the canonical bytes for digests.

Reading checks names, shapes, dtypes, finiteness and digests. A size that a file states is checked before that many bytes are read
or allocated. No pickle is read or written.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from metatrain.artifacts.header import Header, Leaf, check_extent, check_leaves, header_bytes, read_header, shortened
from metatrain.errors import ArtifactError

FORMAT_VERSION: Literal[2] = 2


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it to `path`, so that `path` is never incomplete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_at_most(path: Path, limit: int) -> bytes:
    """Return the content of a file. Raises ArtifactError if it has more than `limit` bytes."""
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ArtifactError(f"{path}: expected at most {limit} bytes, got {path.stat().st_size}")
    return content


def read_weights(
    path: Path, digests: Mapping[str, str], expected: Callable[[Mapping[str, Leaf]], Mapping[str, tuple[int, ...]]]
) -> dict[str, Tensor]:
    """Read a safetensors file, check its leaves and its digest, and return the leaves.

    `digests`: the expected sha256 of each file, by file name. `expected`: a function that returns the expected names and shapes,
    given the leaves in the file's header. Names and shapes are checked before the tensors are read. Raises ArtifactError if the
    file is missing or differs from what is expected.
    """
    if not path.is_file():
        raise ArtifactError(f"{path.parent}: {path.name} is missing")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = file.read(8)
        header = read_header(file.read(header_bytes(length, size, str(path))), str(path))
        check_leaves(header.leaves, expected(header.leaves), str(path))
        check_extent(header, size, str(path))
        file.seek(0)
        content = file.read(size)
    if sha256(content) != digests.get(path.name):
        stated = shortened(str(digests.get(path.name)))
        raise ArtifactError(f"{path}: sha256 is {sha256(content)}, initialization.json says {stated}")
    return load_leaves(content, header, str(path))


def load_leaves(content: bytes, header: Header, where: str) -> dict[str, Tensor]:
    """Load the leaves of a safetensors file whose header has been checked.

    `content`: the whole file. `where`: the file's name in messages. Raises ArtifactError if the file does not load, or if a leaf
    has a value that is not finite.
    """
    check_extent(header, len(content), where)
    try:
        leaves = load(content)
    except (SafetensorError, ValueError) as error:
        raise ArtifactError(f"{where}: not a safetensors file: {error}") from error
    if (name := not_finite(leaves)) is not None:
        raise ArtifactError(f"{where}: leaf {name}: expected finite numbers, got NaN or infinity")
    return leaves


def not_finite(leaves: Mapping[str, Tensor]) -> str | None:
    """Return the name of a leaf that contains NaN or infinity, or None if all leaves are finite."""
    if math.isfinite(sum(float(leaf.sum()) for leaf in leaves.values())):  # a finite sum has only finite terms
        return None
    return next((name for name, leaf in leaves.items() if not torch.isfinite(leaf).all()), None)


def fields_at_default(names: set[str], model: BaseModel) -> set[str]:
    """Return the subset of the fields `names` that have their default values in `model`.

    Files and digests omit fields that were added after format 2 if they have their defaults, so that older digests stay valid.
    """
    return {name for name in names if getattr(model, name) == type(model).model_fields[name].default}


def contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert tensors to the form in which they are stored: detached, on the CPU, float32 and contiguous."""
    return {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}


def canonical_json(value: Any) -> bytes:
    """Return a value as canonical JSON, in which equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
