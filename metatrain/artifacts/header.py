"""The header of a safetensors file, checked before memory of a stated size is allocated.

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
    """The dtype and shape of one leaf. `dtype` is torch's name if it is known, else the file's."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """The checked content of a header.

    `offsets`: the bytes [begin, end) of each leaf, counted from `start`, the position of the first number in the file.
    """

    leaves: Mapping[str, Leaf]
    offsets: Mapping[str, tuple[int, int]]
    metadata: Mapping[str, str]
    start: int


def header_bytes(first: bytes, size: int, where: str) -> int:
    """Return H, the length of the header, from the first 8 bytes of a file of `size` bytes.

    Raises ArtifactError if the file cannot have a header of that length.
    """
    if size < 8:
        raise ArtifactError(f"{where}: not a safetensors file: {size} bytes")
    stated = int.from_bytes(first[:8], "little")
    limit = min(MAX_HEADER_BYTES, size - 8)
    if stated > limit:
        raise ArtifactError(f"{where}: not a safetensors file: header: expected at most {limit} bytes, got {stated}")
    return stated


def read_header(raw: bytes, where: str) -> Header:
    """Return the header with the JSON `raw`.

    Raises ArtifactError if a leaf is not described completely or a key is repeated.
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

    There must be no gap and no overlap, and each leaf has to be as long as float32 numbers of its shape.
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
    """Return text from a file, shortened to quote it in a message."""
    return text if len(text) <= 200 else f"{text[:200]}…"


def _whole_numbers(value: object) -> tuple[int, ...] | None:
    if isinstance(value, list) and all(type(number) is int and 0 <= number < 2**63 for number in value):
        return tuple(value)
    return None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raises ValueError for a repeated key and for a lone surrogate."""
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"expected each key once, got {shortened(key)} twice")
        (key + value if isinstance(value, str) else key).encode()  # raises for a lone surrogate, which could not be written later
        content[key] = value
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"expected a finite number, got {name}")
