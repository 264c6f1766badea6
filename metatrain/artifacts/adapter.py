"""Adapters, to and from bytes.

An adapter is one safetensors byte string whose header carries its metadata as JSON.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.numpy import save as save_arrays
from torch import Tensor

from metatrain.artifacts.files import FORMAT_VERSION, added_since, canonical_json, contiguous, loaded
from metatrain.artifacts.header import Header, check_described, header_bytes, read_header, shown
from metatrain.artifacts.initialization import Initialization, attached
from metatrain.deltas import DeltaConfig
from metatrain.errors import ArtifactError
from metatrain.models.base import Base
from metatrain.pydantic_errors import first_problem
from metatrain.readouts.registry import CLASSES, ReadoutName, readout_kinds

_METADATA_KEY = "quickstudy"  # one key: safetensors does not keep several in order, and the bytes are digested


class AdapterMetadata(BaseModel):
    """The header of an adapter's bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[2] = FORMAT_VERSION
    initialization_digest: str
    base_weights_sha256: str
    delta: DeltaConfig
    scale: float = Field(gt=0, allow_inf_nan=False)
    labels: tuple[str, ...] = ()
    readout: ReadoutName = CLASSES


@dataclass(frozen=True)
class Adapter:
    """φ for one task: `delta` (leaves as θ's), and the leaves that its readout answers with, float32 on the CPU."""

    metadata: AdapterMetadata
    delta: dict[str, Tensor]
    answering: dict[str, Tensor]


def adapter_to_bytes(adapter: Adapter) -> bytes:
    """The same adapter gives the same bytes, so their digest is the digest of the weights."""
    tensors = {f"delta.{n}": t for n, t in adapter.delta.items()} | adapter.answering
    described = adapter.metadata.model_dump(mode="json", exclude=added_since({"readout"}, adapter.metadata))
    metadata = {_METADATA_KEY: canonical_json(described).decode()}
    return save_arrays({name: tensor.numpy() for name, tensor in contiguous(tensors).items()}, metadata)


def adapter_bytes_at_most(init: Initialization, labels: Sequence[str], hidden: int) -> int:
    """What the bytes of an adapter from `init` with these labels, on features of `hidden` numbers, cannot be more than."""
    answering = readout_kinds()[init.readout].answers.shapes(labels, hidden)
    numbers = sum(leaf.numel() for leaf in init.theta.values()) + sum(map(math.prod, answering.values()))
    names = sum(len(name) + 200 for name in init.theta) + 500  # a leaf's line in the header, and the head's two
    described = canonical_json([init.delta.model_dump(mode="json"), list(labels)])
    return 4 * numbers + names + 2 * len(described)  # JSON in JSON: what is escaped takes twice as much


def adapter_metadata(content: bytes) -> AdapterMetadata:
    """The header alone. Raises ArtifactError."""
    return _metadata(_header(content, "adapter"))


def adapter_from_bytes(content: bytes, base: Base) -> Adapter:
    """Strict inverse of `adapter_to_bytes` for `base`. Raises ArtifactError."""
    header = _header(content, "adapter")
    metadata = _metadata(header)
    if metadata.base_weights_sha256 != base.spec.weights_sha256:
        made_for = shown(metadata.base_weights_sha256)
        raise ArtifactError(f"adapter: made for base weights {made_for}, resident are {base.spec.weights_sha256}")
    kind = attached(base, metadata.delta, "adapter: header")
    shapes = {f"delta.{n}": s for n, s in kind.shapes.items()}
    answering = readout_kinds()[metadata.readout].answers.shapes(metadata.labels, base.hidden_size)
    check_described(header.leaves, {**shapes, **answering}, "adapter")
    tensors = loaded(content, header, "adapter")
    delta = {n.removeprefix("delta."): t for n, t in tensors.items() if n.startswith("delta.")}
    return Adapter(metadata, delta, {name: tensors[name] for name in answering})


def _header(content: bytes, where: str) -> Header:
    return read_header(content[8 : 8 + header_bytes(content[:8], len(content), where)], where)


def _metadata(header: Header) -> AdapterMetadata:
    try:
        metadata = AdapterMetadata.model_validate_json(header.metadata.get(_METADATA_KEY, "null"))
    except ValidationError as error:
        raise ArtifactError(f"adapter: header: {first_problem(error, AdapterMetadata)}") from error
    try:
        readout_kinds()[metadata.readout].answers.check(metadata.labels)
    except ArtifactError as error:
        raise ArtifactError(f"adapter: header: {error}") from error
    return metadata
