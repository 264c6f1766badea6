"""Files of tensors and JSON: strict reading, atomic writing, and the bytes that digests are taken of.

Reading checks names, shapes, dtypes, finiteness and digests; what a file says of itself is checked before anything of a size that
it states is read or made. No pickle is read or written.
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

from metatrain.artifacts.header import Header, Leaf, check_described, check_extent, header_bytes, read_header, shown
from metatrain.errors import ArtifactError

FORMAT_VERSION: Literal[2] = 2


def write_atomically(path: Path, content: bytes) -> None:
    """Write and rename, so that `path` is never half-written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_at_most(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ArtifactError(f"{path}: expected at most {most} bytes, got {path.stat().st_size}")
    return content


def read_weights(
    path: Path, digests: Mapping[str, str], expected: Callable[[Mapping[str, Leaf]], Mapping[str, tuple[int, ...]]]
) -> dict[str, Tensor]:
    """The leaves of a file of this digest; `expected`: their shapes, by those that the file says it has. No more of it is read than
    its header, until that says what is expected."""
    if not path.is_file():
        raise ArtifactError(f"{path.parent}: {path.name} is missing")
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        header = read_header(file.read(header_bytes(first, size, str(path))), str(path))
        check_described(header.leaves, expected(header.leaves), str(path))
        check_extent(header, size, str(path))
        file.seek(0)
        content = file.read(size)
    if sha256(content) != digests.get(path.name):
        raise ArtifactError(f"{path}: sha256 is {sha256(content)}, initialization.json says {shown(str(digests.get(path.name)))}")
    return loaded(content, header, str(path))


def loaded(content: bytes, header: Header, where: str) -> dict[str, Tensor]:
    """The leaves of a file whose header is checked already, each finite."""
    check_extent(header, len(content), where)
    try:
        leaves = load(content)
    except (SafetensorError, ValueError) as error:
        raise ArtifactError(f"{where}: not a safetensors file: {error}") from error
    if (name := not_finite(leaves)) is not None:
        raise ArtifactError(f"{where}: leaf {name}: expected finite numbers, got NaN or infinity")
    return leaves


def not_finite(leaves: Mapping[str, Tensor]) -> str | None:
    """The name of a leaf that has a NaN or an infinity; None where all are finite, as they are if their sum is."""
    if math.isfinite(sum(float(leaf.sum()) for leaf in leaves.values())):
        return None
    return next((name for name, leaf in leaves.items() if not torch.isfinite(leaf).all()), None)


def added_since(names: set[str], model: BaseModel) -> set[str]:
    """Of `names`, fields that came after format 2, those at their defaults: digests from before them stay what they were."""
    return {name for name in names if getattr(model, name) == type(model).model_fields[name].default}


def contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}


def canonical_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
