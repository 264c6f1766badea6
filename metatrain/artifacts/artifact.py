"""Initializations and adapters, to and from disk and bytes. Loading is strict: names, shapes, dtypes, finiteness, digests; and what
a file says of itself is checked before anything of a size that it states is read or made.

An initialization is a folder: θ as PEFT's own two files, `inner_lr.safetensors`, `base_update.safetensors` where parameters of
the base model were learned too, and `initialization.json` with everything else. An adapter is one safetensors byte string whose
header carries its metadata as JSON. No pickle is read or written.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import save as save_arrays
from safetensors.torch import load, save
from torch import Tensor

from metatrain.artifacts.header import Header, Leaf, check_described, check_extent, header_bytes, read_header, shown
from metatrain.deltas import DeltaConfig, DeltaKind
from metatrain.deltas.peft_files import PeftFiles
from metatrain.errors import ArtifactError, BaseModelError
from metatrain.inner.config import InnerConfig
from metatrain.inner.problem import Outer
from metatrain.invalid import first_problem
from metatrain.models.base import Base
from metatrain.models.inputs import AnySpec
from metatrain.readouts.registry import CLASSES, readout_kinds

FORMAT_VERSION: Literal[2] = 2
_BASE_UPDATE = "base_update.safetensors"
_MOST_JSON_BYTES = 16_000_000
_MOST_STEPS = 1_000  # of rates by step
_METADATA_KEY = "quickstudy"  # one key: safetensors does not keep several in order, and the bytes are digested


class InitializationFile(BaseModel):
    """`initialization.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[2] = FORMAT_VERSION
    name: str
    base: AnySpec
    delta: DeltaConfig
    inner: InnerConfig
    scale: float = Field(gt=0, allow_inf_nan=False, description="s, the inverse softmax temperature of the cosine logits")
    algorithm: str
    weights_sha256: dict[str, str]
    provenance: dict[str, Any] = Field(default_factory=dict)
    readout: str = CLASSES


@dataclass(frozen=True)
class Initialization:
    """All that an inner loop needs besides the support set.

    `theta`: one task's delta, float32. `rates`: [S] per leaf of the delta and of the head, not negative. `scale`: s. `base_update`:
    parameters that stand in the place of the base model's own of their names, float32. `digest` covers exactly what determines an
    adapter's weights: base model, delta, inner loop, θ, rates, s and base update; not name or provenance.
    """

    name: str
    base: AnySpec
    delta: DeltaConfig
    inner: InnerConfig
    theta: dict[str, Tensor]
    rates: dict[str, Tensor]
    scale: float
    algorithm: str
    provenance: dict[str, Any]
    base_update: dict[str, Tensor] = field(default_factory=dict)
    readout: str = CLASSES

    @cached_property
    def digest(self) -> str:
        identity = {
            "format_version": FORMAT_VERSION,
            "base": self.base.identity,
            "delta": self.delta.model_dump(),
            "inner": self.inner.model_dump(exclude=_added_since({"moved", "proximal", "hard_steps", "in_parts"}, self.inner)),
            "scale": self.scale,
            "theta": _sha256(save(_contiguous(self.theta))),
            "rates": _sha256(save(_contiguous(self.rates))),
        }
        if self.readout != CLASSES:
            identity["readout"] = self.readout
        if self.base_update:
            identity["base_update"] = _sha256(save(_contiguous(self.base_update)))
        return _sha256(_canonical_json(identity))

    def outer(self, device: torch.device) -> Outer:
        """θ, rates and scale on `device`: what the inner loop starts from."""
        return Outer(self.theta, self.rates, torch.tensor(self.scale), self.base_update).on(device)


def save_initialization(init: Initialization, folder: Path, kind: DeltaKind) -> None:
    """Write `init` to `folder`, the JSON last, so that a folder with one is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    named = init.theta if kind.peft is None else kind.peft.to_peft(init.theta)
    weights = {_weights_file(kind): save(_contiguous(named)), "inner_lr.safetensors": save(_contiguous(init.rates))}
    if init.base_update:
        weights[_BASE_UPDATE] = save(_contiguous(init.base_update))
    described = InitializationFile(
        name=init.name,
        base=init.base,
        delta=init.delta,
        inner=init.inner,
        scale=init.scale,
        algorithm=init.algorithm,
        weights_sha256={name: _sha256(content) for name, content in weights.items()},
        provenance=init.provenance,
        readout=init.readout,
    )
    for name, content in weights.items():
        write_atomically(folder / name, content)
    if not init.base_update:
        (folder / _BASE_UPDATE).unlink(missing_ok=True)  # of an initialization that was here before
    if kind.peft is not None:
        config = json.dumps(kind.peft.config(init.base.model), indent=2)
        write_atomically(folder / "adapter_config.json", config.encode() + b"\n")
    write_atomically(
        folder / "initialization.json",
        described.model_dump_json(indent=2, exclude=_added_since({"readout"}, described)).encode() + b"\n",
    )


def load_initialization(folder: Path, base: Base) -> Initialization:
    """Read an initialization for `base`, strictly. Raises ArtifactError naming file and leaf, what was expected and what came."""
    path = folder / "initialization.json"
    if not path.is_file():
        raise ArtifactError(f"{folder}: no initialization.json there")
    try:
        described = InitializationFile.model_validate_json(_read(path, _MOST_JSON_BYTES))
    except ValidationError as error:
        raise ArtifactError(f"{path}: {first_problem(error, InitializationFile)}") from error
    expected_base, found_base = described.base.identity, base.spec.identity
    for key, expected in expected_base.items():
        if found_base[key] != expected:
            raise ArtifactError(
                f"{path}: base.{key} is {expected!r}, the resident base model {base.spec.model} has {found_base[key]!r}"
            )
    kind = _attached(base, described.delta, str(path))
    for name in described.weights_sha256.keys() - {_weights_file(kind), "inner_lr.safetensors", _BASE_UPDATE}:
        raise ArtifactError(f"{path}: weights_sha256: expected no file {shown(repr(name))}")
    if described.readout not in readout_kinds():
        known = ", ".join(readout_kinds())
        raise ArtifactError(f"{path}: readout: expected one of {known}, got {shown(described.readout)!r}")
    leaves = readout_kinds()[described.readout].leaves
    shapes = kind.shapes if kind.peft is None else kind.peft.shapes
    theta = _read_weights(folder / _weights_file(kind), described.weights_sha256, lambda _: shapes)
    rates = _read_weights(
        folder / "inner_lr.safetensors", described.weights_sha256, lambda found: _rate_shapes(found, kind, leaves)
    )
    update = _read_base_update(folder / _BASE_UPDATE, described.weights_sha256, base)
    for name, rate in rates.items():
        if (rate < 0).any():
            raise ArtifactError(f"{folder}/inner_lr.safetensors: {name}: expected rates of at least 0, got {float(rate.min())}")
    if kind.peft is not None:
        _check_peft_config(folder / "adapter_config.json", kind.peft)
        theta = kind.peft.from_peft(theta)
    return Initialization(
        name=described.name,
        base=described.base,
        delta=described.delta,
        inner=described.inner,
        theta=theta,
        rates=rates,
        scale=described.scale,
        algorithm=described.algorithm,
        provenance=described.provenance,
        base_update=update,
        readout=described.readout,
    )


class AdapterMetadata(BaseModel):
    """The header of an adapter's bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[2] = FORMAT_VERSION
    initialization_digest: str
    base_weights_sha256: str
    delta: DeltaConfig
    scale: float = Field(gt=0, allow_inf_nan=False)
    labels: tuple[str, ...] = ()
    readout: str = CLASSES


@dataclass(frozen=True)
class Adapter:
    """φ for one task: `delta` (leaves as θ's), and the leaves that its readout answers with, float32 on the CPU."""

    metadata: AdapterMetadata
    delta: dict[str, Tensor]
    answering: dict[str, Tensor]


def adapter_to_bytes(adapter: Adapter) -> bytes:
    """The same adapter gives the same bytes, so their digest is the digest of the weights."""
    tensors = {f"delta.{n}": t for n, t in adapter.delta.items()} | adapter.answering
    described = adapter.metadata.model_dump(mode="json", exclude=_added_since({"readout"}, adapter.metadata))
    metadata = {_METADATA_KEY: _canonical_json(described).decode()}
    return save_arrays({name: tensor.numpy() for name, tensor in _contiguous(tensors).items()}, metadata)


def not_finite(leaves: Mapping[str, Tensor]) -> str | None:
    """The name of a leaf that has a NaN or an infinity; None where all are finite, as they are if their sum is."""
    if math.isfinite(sum(float(leaf.sum()) for leaf in leaves.values())):
        return None
    return next((name for name, leaf in leaves.items() if not torch.isfinite(leaf).all()), None)


def adapter_bytes_at_most(init: Initialization, labels: Sequence[str], hidden: int) -> int:
    """What the bytes of an adapter from `init` with these labels, on features of `hidden` numbers, cannot be more than."""
    answering = readout_kinds()[init.readout].answers.shapes(labels, hidden)
    numbers = sum(leaf.numel() for leaf in init.theta.values()) + sum(map(math.prod, answering.values()))
    names = sum(len(name) + 200 for name in init.theta) + 500  # a leaf's line in the header, and the head's two
    described = _canonical_json([init.delta.model_dump(mode="json"), list(labels)])
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
    kind = _attached(base, metadata.delta, "adapter: header")
    shapes = {f"delta.{n}": s for n, s in kind.shapes.items()}
    answering = readout_kinds()[metadata.readout].answers.shapes(metadata.labels, base.hidden_size)
    check_described(header.leaves, {**shapes, **answering}, "adapter")
    tensors = _loaded(content, header, "adapter")
    delta = {n.removeprefix("delta."): t for n, t in tensors.items() if n.startswith("delta.")}
    return Adapter(metadata, delta, {name: tensors[name] for name in answering})


def write_atomically(path: Path, content: bytes) -> None:
    """Write and rename, so that `path` is never half-written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _read_weights(
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
    if _sha256(content) != digests.get(path.name):
        raise ArtifactError(f"{path}: sha256 is {_sha256(content)}, initialization.json says {shown(str(digests.get(path.name)))}")
    return _loaded(content, header, str(path))


def _read_base_update(path: Path, digests: Mapping[str, str], base: Base) -> dict[str, Tensor]:
    """Parameters of `base`, each of its own shape; none where the initialization has none."""
    if path.name not in digests:
        if path.exists():
            raise ArtifactError(f"{path}: expected no such file, initialization.json does not name it")
        return {}
    shapes = {name: tuple(parameter.shape) for name, parameter in base.model.named_parameters()}
    update = _read_weights(path, digests, lambda found: {name: shape for name, shape in shapes.items() if name in found})
    if not update:
        raise ArtifactError(f"{path}: expected at least one parameter, got none")
    return update


def _header(content: bytes, where: str) -> Header:
    return read_header(content[8 : 8 + header_bytes(content[:8], len(content), where)], where)


def _metadata(header: Header) -> AdapterMetadata:
    try:
        metadata = AdapterMetadata.model_validate_json(header.metadata.get(_METADATA_KEY, "null"))
    except ValidationError as error:
        raise ArtifactError(f"adapter: header: {first_problem(error, AdapterMetadata)}") from error
    if metadata.readout not in readout_kinds():
        raise ArtifactError(
            f"adapter: header: readout: expected one of {', '.join(readout_kinds())}, got {shown(metadata.readout)!r}"
        )
    try:
        readout_kinds()[metadata.readout].answers.check(metadata.labels)
    except ArtifactError as error:
        raise ArtifactError(f"adapter: header: {error}") from error
    return metadata


def _attached(base: Base, config: DeltaConfig, where: str) -> DeltaKind:
    try:
        return base.attach(config)
    except BaseModelError as error:
        raise ArtifactError(f"{where}: delta: {shown(str(error))}") from error


def _loaded(content: bytes, header: Header, where: str) -> dict[str, Tensor]:
    """The leaves of a file whose header is checked already, each finite."""
    check_extent(header, len(content), where)
    try:
        leaves = load(content)
    except (SafetensorError, ValueError) as error:
        raise ArtifactError(f"{where}: not a safetensors file: {error}") from error
    if (name := not_finite(leaves)) is not None:
        raise ArtifactError(f"{where}: leaf {name}: expected finite numbers, got NaN or infinity")
    return leaves


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ArtifactError(f"{path}: expected at most {most} bytes, got {path.stat().st_size}")
    return content


def _weights_file(kind: DeltaKind) -> str:
    return "delta.safetensors" if kind.peft is None else "adapter_model.safetensors"


def _rate_shapes(found: Mapping[str, Leaf], kind: DeltaKind, readout: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Of each leaf and step [S], or of each parameter and step [S, *leaf], the same S for all."""
    steps = max((leaf.shape[0] for leaf in found.values() if leaf.shape), default=1)
    expected: dict[str, tuple[int, ...]] = dict.fromkeys((*kind.shapes, *readout), (min(steps, _MOST_STEPS),))
    for name, shape in kind.shapes.items():
        if name in found and len(found[name].shape) > 1:
            expected[name] = (min(steps, _MOST_STEPS), *shape)
    return expected


def _check_peft_config(path: Path, files: PeftFiles) -> None:
    if not path.is_file():
        raise ArtifactError(f"{path.parent}: adapter_config.json is missing")
    try:
        stated = dict(json.loads(_read(path, _MOST_JSON_BYTES)))
    except (ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path}: expected a JSON object: {error}") from error
    for key, value in files.essentials.items():
        if stated.get(key) != value:
            raise ArtifactError(f"{path}: {key}: expected {value!r} as in initialization.json, got {stated.get(key)!r}")
    for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform"):
        if stated.get(key):
            raise ArtifactError(f"{path}: {key}: expected nothing, got {stated[key]!r}: PEFT would compute something else")


def _added_since(names: set[str], model: BaseModel) -> set[str]:
    """Of `names`, fields that came after format 2, those at their defaults: digests from before them stay what they were."""
    return {name for name in names if getattr(model, name) == type(model).model_fields[name].default}


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}


def _canonical_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
