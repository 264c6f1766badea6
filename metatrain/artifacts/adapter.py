"""Conversion of adapters to bytes and back.

The bytes of an adapter are a safetensors file with the adapter's metadata as JSON in the header.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.numpy import save as save_arrays
from torch import Tensor

from metatrain.artifacts.files import FORMAT_VERSION, canonical_json, contiguous, fields_at_default, load_leaves
from metatrain.artifacts.header import Header, check_leaves, header_of, shortened
from metatrain.artifacts.initialization import Initialization, attach_delta
from metatrain.deltas import DeltaConfig
from metatrain.errors import ArtifactError
from metatrain.models.base import Base
from metatrain.pydantic_errors import first_problem
from metatrain.readouts.registry import CLASSES, ReadoutName, readout_kinds

# All metadata are under one key, because safetensors does not keep several keys in order, and the digest needs deterministic bytes.
_METADATA_KEY = "quickstudy"


class AdapterMetadata(BaseModel):
    """The metadata of an adapter, stored in the header of its bytes."""

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
    """The adapted parameters φ of one task, float32 on the CPU.

    `delta`: leaves with the same names and shapes as θ. `answering`: the tensors from which the readout predicts, such as the
    weights of a head.
    """

    metadata: AdapterMetadata
    delta: dict[str, Tensor]
    answering: dict[str, Tensor]


def adapter_to_bytes(adapter: Adapter) -> bytes:
    """Return an adapter as bytes.

    Equal adapters give equal bytes, so the digest of the bytes identifies the weights.
    """
    tensors = {f"delta.{n}": t for n, t in adapter.delta.items()} | adapter.answering
    described = adapter.metadata.model_dump(mode="json", exclude=fields_at_default({"readout"}, adapter.metadata))
    metadata = {_METADATA_KEY: canonical_json(described).decode()}
    return save_arrays({name: tensor.numpy() for name, tensor in contiguous(tensors).items()}, metadata)


def adapter_bytes_at_most(init: Initialization, labels: Sequence[str], hidden: int) -> int:
    """Return an upper bound for the size in bytes of an adapter from `init` with these labels.

    `hidden`: D, the width of a hidden state of the base model.
    """
    answering = readout_kinds()[init.readout].answers.shapes(labels, hidden)
    numbers = sum(leaf.numel() for leaf in init.theta.values()) + sum(map(math.prod, answering.values()))
    header_lines = sum(len(name) + 200 for name in init.theta) + 500  # the header's entries for the leaves of θ and of the readout
    described = canonical_json([init.delta.model_dump(mode="json"), list(labels)])
    return 4 * numbers + header_lines + 2 * len(described)  # JSON in a JSON string: escaped characters take twice the space


def adapter_metadata(content: bytes) -> AdapterMetadata:
    """Return the metadata of an adapter without reading its tensors.

    Raises ArtifactError if the header or the metadata are not valid.
    """
    return _metadata(header_of(content, "adapter"))


def adapter_from_bytes(content: bytes, base: Base) -> Adapter:
    """Read an adapter for `base` from the bytes that `adapter_to_bytes` returned.

    Raises ArtifactError if the bytes are not a valid adapter, or if the adapter was made for other base weights.
    """
    header = header_of(content, "adapter")
    metadata = _metadata(header)
    if metadata.base_weights_sha256 != base.spec.weights_sha256:
        made_for = shortened(metadata.base_weights_sha256)
        raise ArtifactError(f"adapter: made for base weights {made_for}, the loaded base model has {base.spec.weights_sha256}")
    kind = attach_delta(base, metadata.delta, "adapter: header")
    shapes = {f"delta.{n}": s for n, s in kind.shapes.items()}
    answering = readout_kinds()[metadata.readout].answers.shapes(metadata.labels, base.feature_size)
    check_leaves(header.leaves, {**shapes, **answering}, "adapter")
    tensors = load_leaves(content, header, "adapter")
    delta = {n.removeprefix("delta."): t for n, t in tensors.items() if n.startswith("delta.")}
    return Adapter(metadata, delta, {name: tensors[name] for name in answering})


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
