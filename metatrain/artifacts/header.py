"""What a safetensors file says of itself, checked before anything of a size that it states is made.

8 bytes: H, little-endian │ H bytes: {name: {"dtype", "shape", "data_offsets": [begin, end]}, …, "__metadata__"?: {…}} │ numbers
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from metatrain.errors import ArtifactError

MAX_HEADER_BYTES = 4_000_000
_MOST_DIMENSIONS = 8
_DTYPES = {"F64": "torch.float64", "F32": "torch.float32", "F16": "torch.float16", "BF16": "torch.bfloat16", "I64": "torch.int64"}
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class Leaf:
    """`dtype` as torch names it, where it does."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """`offsets` [begin, end) of each leaf, counted from `start`, where the numbers begin."""

    leaves: Mapping[str, Leaf]
    offsets: Mapping[str, tuple[int, int]]
    metadata: Mapping[str, str]
    start: int


def header_bytes(first: bytes, size: int, where: str) -> int:
    """H, from the first 8 bytes of `size`. Raises ArtifactError where there cannot be that many."""
    if size < 8:
        raise ArtifactError(f"{where}: not a safetensors file: {size} bytes")
    stated = int.from_bytes(first[:8], "little")
    most = min(MAX_HEADER_BYTES, size - 8)
    if stated > most:
        raise ArtifactError(f"{where}: not a safetensors file: header: expected at most {most} bytes, got {stated}")
    return stated


def read_header(raw: bytes, where: str) -> Header:
    """The header of the JSON `raw`, each leaf described and nothing twice. Raises ArtifactError."""
    try:
        content = json.loads(raw.decode(), object_pairs_hook=_once, parse_constant=_no_constant)
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
            raise ArtifactError(f"{where}: leaf {shown(name)}: expected dtype, shape and data_offsets")
        shape, span = (_numbers(stated[key]) for key in ("shape", "data_offsets"))
        if shape is None or len(shape) > _MOST_DIMENSIONS:
            raise ArtifactError(f"{where}: leaf {shown(name)}: shape: expected at most {_MOST_DIMENSIONS} whole numbers")
        if span is None or len(span) != 2:
            raise ArtifactError(f"{where}: leaf {shown(name)}: data_offsets: expected two whole numbers")
        leaves[name] = Leaf(_DTYPES.get(stated["dtype"], shown(stated["dtype"])), shape)
        offsets[name] = (span[0], span[1])
    return Header(leaves, offsets, metadata, 8 + len(raw))


def check_described(found: Mapping[str, Leaf], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Exactly the expected names, each float32 and of its shape. Raises ArtifactError naming the first leaf that is not."""
    for name in sorted(expected.keys() - found.keys()):
        raise ArtifactError(f"{where}: leaf {name} is missing")
    for name in sorted(found.keys() - expected.keys()):
        raise ArtifactError(f"{where}: leaf {shown(name)} is not expected")
    for name, leaf in found.items():
        if leaf.dtype != "torch.float32":
            raise ArtifactError(f"{where}: leaf {name}: expected dtype torch.float32, got {leaf.dtype}")
        if leaf.shape != expected[name]:
            raise ArtifactError(f"{where}: leaf {name}: expected shape {list(expected[name])}, got {shown(str(list(leaf.shape)))}")


def check_extent(header: Header, size: int, where: str) -> None:
    """The leaves, float32 all, lie side by side from the header to the end of `size` bytes. Raises ArtifactError."""
    at = 0
    for name, (begin, end) in sorted(header.offsets.items(), key=lambda item: item[1]):
        if begin != at or end - begin != 4 * math.prod(header.leaves[name].shape):
            raise ArtifactError(f"{where}: leaf {name}: data_offsets {shown(str([begin, end]))} are not those of its shape")
        at = end
    if header.start + at != size:
        raise ArtifactError(f"{where}: expected {header.start + at} bytes, got {size}")


def shown(text: str) -> str:
    """What a message quotes of a file."""
    return text if len(text) <= 200 else f"{text[:200]}…"


def _numbers(value: object) -> tuple[int, ...] | None:
    if isinstance(value, list) and all(type(number) is int and 0 <= number < 2**63 for number in value):
        return tuple(value)
    return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, each of its keys once; no lone surrogates in keys and strings, which could not be written anywhere."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{shown(key)} is there twice")
        (key + value if isinstance(value, str) else key).encode()
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
