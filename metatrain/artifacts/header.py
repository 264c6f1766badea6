"""Strict reading of a safetensors header. Sizes are checked before memory for them is allocated.

The layout of a file, with a header of H bytes:

8 bytes: H, little-endian │ H bytes: {name: {"dtype", "shape", "data_offsets": [begin, end]}, …, "__metadata__"?: {…}} │ numbers
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from metatrain.errors import ArtifactError

MAX_HEADER_BYTES = 4_000_000
_MAX_DIMENSIONS = 8
_DTYPES = {"F64": "torch.float64", "F32": "torch.float32", "F16": "torch.float16", "BF16": "torch.bfloat16", "I64": "torch.int64"}
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class Leaf:
    """The dtype and shape of one leaf (tensor) in a file.

    `dtype`: the name in torch, such as `torch.float32`; for a dtype not in `_DTYPES`, the name in the file.
    """

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """The checked content of a safetensors header.

    `start`: the position in the file where the header ends and the numbers begin. `offsets`: the bytes [begin, end) of each leaf,
    counted from `start`.
    """

    leaves: Mapping[str, Leaf]
    offsets: Mapping[str, tuple[int, int]]
    metadata: Mapping[str, str]
    start: int


def header_bytes(first: bytes, size: int, where: str) -> int:
    """Return the length in bytes of a file's header, which the file's first 8 bytes state.

    `first`: these 8 bytes. `size`: the size of the file in bytes. `where`: the file's name in messages. Raises ArtifactError if the
    file cannot have a header of that length.
    """
    if size < 8:
        raise ArtifactError(f"{where}: not a safetensors file: {size} bytes")
    stated = int.from_bytes(first[:8], "little")
    limit = min(MAX_HEADER_BYTES, size - 8)
    if stated > limit:
        raise ArtifactError(f"{where}: not a safetensors file: header: expected at most {limit} bytes, got {stated}")
    return stated


def read_header(raw: bytes, where: str) -> Header:
    """Parse and check `raw`, the JSON of a header.

    `where`: the file's name in messages. Raises ArtifactError if `raw` is not valid JSON, if a leaf is not described completely or
    if a key is repeated.
    """
    try:
        content = json.loads(raw.decode(), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where}: not a safetensors file: header: {error}") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{where}: not a safetensors file: header: expected a JSON object")
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ArtifactError(f"{where}: header: __metadata__: expected an object of strings")
    leaves, offsets = {}, {}
    for name, stated in content.items():
        if not isinstance(stated, dict) or stated.keys() != _FIELDS or not isinstance(stated["dtype"], str):
            raise ArtifactError(f"{where}: leaf {shortened(name)}: expected dtype, shape and data_offsets")
        shape, span = (_whole_numbers(stated[key]) for key in ("shape", "data_offsets"))
        if shape is None or len(shape) > _MAX_DIMENSIONS:
            raise ArtifactError(f"{where}: leaf {shortened(name)}: shape: expected at most {_MAX_DIMENSIONS} whole numbers")
        if span is None or len(span) != 2:
            raise ArtifactError(f"{where}: leaf {shortened(name)}: data_offsets: expected two whole numbers")
        leaves[name] = Leaf(_DTYPES.get(stated["dtype"], shortened(stated["dtype"])), shape)
        offsets[name] = (span[0], span[1])
    return Header(leaves, offsets, metadata, 8 + len(raw))


def header_of(content: bytes, where: str) -> Header:
    """Return the header of a safetensors file in memory. Raises ArtifactError."""
    return read_header(content[8 : 8 + header_bytes(content[:8], len(content), where)], where)


def check_leaves(leaves: Mapping[str, Leaf], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise ArtifactError unless the leaves have exactly the expected names and shapes, and are float32.

    The message names the first leaf that differs.
    """
    for name in sorted(expected.keys() - leaves.keys()):
        raise ArtifactError(f"{where}: leaf {name} is missing")
    for name in sorted(leaves.keys() - expected.keys()):
        raise ArtifactError(f"{where}: leaf {shortened(name)} is not expected")
    for name, leaf in leaves.items():
        if leaf.dtype != "torch.float32":
            raise ArtifactError(f"{where}: leaf {name}: expected dtype torch.float32, got {leaf.dtype}")
        if leaf.shape != expected[name]:
            shape = shortened(str(list(leaf.shape)))
            raise ArtifactError(f"{where}: leaf {name}: expected shape {list(expected[name])}, got {shape}")


def check_extent(header: Header, size: int, where: str) -> None:
    """Raise ArtifactError unless the leaves fill the file of `size` bytes from the header to its end.

    There must be no gap and no overlap, and each leaf must have exactly the bytes of a float32 tensor of its shape.
    """
    position = 0
    for name, (begin, end) in sorted(header.offsets.items(), key=lambda item: item[1]):
        if begin != position or end - begin != 4 * math.prod(header.leaves[name].shape):
            offsets = shortened(str([begin, end]))
            raise ArtifactError(f"{where}: leaf {name}: data_offsets {offsets} do not match its shape and position")
        position = end
    if header.start + position != size:
        raise ArtifactError(f"{where}: expected {header.start + position} bytes, got {size}")


def shortened(text: str) -> str:
    """Return at most the first 200 characters of a text from a file, to quote it in a message."""
    return text if len(text) <= 200 else f"{text[:200]}…"


def _whole_numbers(value: object) -> tuple[int, ...] | None:
    if isinstance(value, list) and all(type(number) is int and 0 <= number < 2**63 for number in value):
        return tuple(value)
    return None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object from its pairs. Raises ValueError for a repeated key or a lone surrogate."""
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"expected each key once, got {shortened(key)} twice")
        (key + value if isinstance(value, str) else key).encode()  # raises for a lone surrogate, which could not be written later
        content[key] = value
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"expected a finite number, got {name}")
