"""Initializations and adapters, to and from disk and bytes. Loading is strict: names, shapes, dtypes, finiteness, digests.

An initialization is a folder: θ as PEFT's own two files, `inner_lr.safetensors`, and `initialization.json` with everything
else. An adapter is one safetensors byte string whose header carries its metadata as JSON. No pickle is read or written.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from metatrain.base.text import BaseSpec, TextBase
from metatrain.deltas import LoRA, LoRAConfig
from metatrain.deltas.lora import stack
from metatrain.errors import ArtifactError
from metatrain.inner import HEAD_LEAVES, InnerConfig

FORMAT_VERSION: Literal[2] = 2
_PEFT_PREFIX = "base_model.model."
_METADATA_KEY = "quickstudy"  # one key: safetensors does not keep several in order, and the bytes are digested


class InitializationFile(BaseModel):
    """`initialization.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[2] = FORMAT_VERSION
    name: str
    base: BaseSpec
    delta: LoRAConfig
    inner: InnerConfig
    scale: float = Field(gt=0, description="s, the inverse softmax temperature of the cosine logits")
    algorithm: str
    weights_sha256: dict[str, str]
    provenance: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Initialization:
    """All that an inner loop needs besides the support set.

    `theta`: one task's delta, float32. `rates`: [S] per leaf of the delta and of the head, not negative. `scale`: s. `digest`
    covers exactly what determines an adapter's weights: base model, delta, inner loop, θ, rates and s; not name or provenance.
    """

    name: str
    base: BaseSpec
    delta: LoRAConfig
    inner: InnerConfig
    theta: dict[str, Tensor]
    rates: dict[str, Tensor]
    scale: float
    algorithm: str
    provenance: dict[str, Any]

    @property
    def digest(self) -> str:
        identity = {
            "format_version": FORMAT_VERSION,
            "base": self.base.model_dump(exclude={"model"}),
            "delta": self.delta.model_dump(),
            "inner": self.inner.model_dump(),
            "scale": self.scale,
            "theta": _sha256(save(_contiguous(self.theta))),
            "rates": _sha256(save(_contiguous(self.rates))),
        }
        return _sha256(_canonical_json(identity))

    def tensors(self, tasks: int, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """θ for T tasks (leaves [T, …]), rates and scale on `device`: what `adapt` takes."""
        theta = stack({name: leaf.to(device) for name, leaf in self.theta.items()}, tasks)
        return theta, {name: rate.to(device) for name, rate in self.rates.items()}, torch.tensor(self.scale, device=device)


def save_initialization(init: Initialization, folder: Path, lora: LoRA) -> None:
    """Write `init` to `folder`, the JSON last, so that a folder with one is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        "adapter_model.safetensors": save(_contiguous({_PEFT_PREFIX + n: t for n, t in init.theta.items()})),
        "inner_lr.safetensors": save(_contiguous(init.rates)),
    }
    peft_config = {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": init.base.model,
        "r": init.delta.rank,
        "lora_alpha": init.delta.alpha,
        "target_modules": sorted(lora.sites),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    described = InitializationFile(
        name=init.name,
        base=init.base,
        delta=init.delta,
        inner=init.inner,
        scale=init.scale,
        algorithm=init.algorithm,
        weights_sha256={name: _sha256(content) for name, content in weights.items()},
        provenance=init.provenance,
    )
    for name, content in weights.items():
        write_atomically(folder / name, content)
    write_atomically(folder / "adapter_config.json", json.dumps(peft_config, indent=2).encode() + b"\n")
    write_atomically(folder / "initialization.json", described.model_dump_json(indent=2).encode() + b"\n")


def load_initialization(folder: Path, base: TextBase) -> Initialization:
    """Read an initialization for `base`, strictly. Raises ArtifactError naming file and leaf, what was expected and what came."""
    path = folder / "initialization.json"
    if not path.is_file():
        raise ArtifactError(f"{folder}: no initialization.json there")
    try:
        described = InitializationFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ArtifactError(f"{path}: {first_problem(error)}") from error
    expected_base, found_base = described.base.model_dump(exclude={"model"}), base.spec.model_dump(exclude={"model"})
    for key, expected in expected_base.items():
        if found_base[key] != expected:
            raise ArtifactError(
                f"{path}: base.{key} is {expected!r}, the resident base model {base.spec.model} has {found_base[key]!r}"
            )
    lora = base.attach(described.delta)
    theta_raw = _read_weights(folder, "adapter_model.safetensors", described.weights_sha256)
    rates = _read_weights(folder, "inner_lr.safetensors", described.weights_sha256)
    source = f"{folder}/adapter_model.safetensors"
    check_leaves(theta_raw, {_PEFT_PREFIX + n: s for n, s in lora.shapes.items()}, source)
    rate_steps = max((leaf.numel() for leaf in rates.values()), default=1)
    check_leaves(rates, dict.fromkeys((*lora.shapes, *HEAD_LEAVES), (rate_steps,)), f"{folder}/inner_lr.safetensors")
    for name, rate in rates.items():
        if (rate < 0).any():
            raise ArtifactError(f"{folder}/inner_lr.safetensors: {name}: expected rates of at least 0, got {float(rate.min())}")
    _check_peft_config(folder / "adapter_config.json", described.delta, lora)
    return Initialization(
        name=described.name,
        base=described.base,
        delta=described.delta,
        inner=described.inner,
        theta={n.removeprefix(_PEFT_PREFIX): t for n, t in theta_raw.items()},
        rates=rates,
        scale=described.scale,
        algorithm=described.algorithm,
        provenance=described.provenance,
    )


class AdapterMetadata(BaseModel):
    """The header of an adapter's bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[2] = FORMAT_VERSION
    initialization_digest: str
    base_weights_sha256: str
    delta: LoRAConfig
    scale: float = Field(gt=0)
    labels: tuple[str, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Adapter:
    """φ for one task: `delta` (leaves as θ's), `weight` [C, D], `bias` [C], float32 on the CPU, and the C labels."""

    metadata: AdapterMetadata
    delta: dict[str, Tensor]
    weight: Tensor
    bias: Tensor


def adapter_to_bytes(adapter: Adapter) -> bytes:
    """The same adapter gives the same bytes, so their digest is the digest of the weights."""
    tensors = {f"delta.{n}": t for n, t in adapter.delta.items()} | {"head.weight": adapter.weight, "head.bias": adapter.bias}
    return save(_contiguous(tensors), metadata={_METADATA_KEY: _canonical_json(adapter.metadata.model_dump(mode="json")).decode()})


def adapter_metadata(content: bytes) -> AdapterMetadata:
    """The header alone. Raises ArtifactError."""
    try:
        header = dict(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]))
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"adapter: not a safetensors file: {error}") from error
    try:
        return AdapterMetadata.model_validate_json(header.get("__metadata__", {}).get(_METADATA_KEY, "null"))
    except ValidationError as error:
        raise ArtifactError(f"adapter: header: {first_problem(error)}") from error


def adapter_from_bytes(content: bytes, base: TextBase) -> Adapter:
    """Strict inverse of `adapter_to_bytes` for `base`. Raises ArtifactError."""
    metadata = adapter_metadata(content)
    tensors = _load_safetensors(content, "adapter")
    if metadata.base_weights_sha256 != base.spec.weights_sha256:
        raise ArtifactError(
            f"adapter: made for base weights {metadata.base_weights_sha256}, resident are {base.spec.weights_sha256}"
        )
    lora, classes = base.attach(metadata.delta), len(metadata.labels)
    shapes = {f"delta.{n}": s for n, s in lora.shapes.items()}
    check_leaves(tensors, {**shapes, "head.weight": (classes, base.hidden_size), "head.bias": (classes,)}, "adapter")
    delta = {n.removeprefix("delta."): t for n, t in tensors.items() if n.startswith("delta.")}
    return Adapter(metadata, delta, tensors["head.weight"], tensors["head.bias"])


def check_leaves(found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Exactly the expected names, each float32, of its shape and finite. Raises ArtifactError naming the first leaf that is not."""
    for name in sorted(expected.keys() - found.keys()):
        raise ArtifactError(f"{where}: leaf {name} is missing")
    for name in sorted(found.keys() - expected.keys()):
        raise ArtifactError(f"{where}: leaf {name} is not expected")
    for name, leaf in found.items():
        if leaf.dtype != torch.float32:
            raise ArtifactError(f"{where}: leaf {name}: expected dtype torch.float32, got {leaf.dtype}")
        if tuple(leaf.shape) != expected[name]:
            raise ArtifactError(f"{where}: leaf {name}: expected shape {list(expected[name])}, got {list(leaf.shape)}")
        if not torch.isfinite(leaf).all():
            raise ArtifactError(f"{where}: leaf {name}: expected finite numbers, got NaN or infinity")


def write_atomically(path: Path, content: bytes) -> None:
    """Write and rename, so that `path` is never half-written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def first_problem(error: ValidationError) -> str:
    """One line of a pydantic error: the key, what was expected, what came."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"]) or "document"
    return f"{where}: {problem['msg']}, got {str(problem['input'])[:80]!r}"


def _read_weights(folder: Path, name: str, digests: Mapping[str, str]) -> dict[str, Tensor]:
    path = folder / name
    if not path.is_file():
        raise ArtifactError(f"{folder}: {name} is missing")
    content = path.read_bytes()
    if _sha256(content) != digests.get(name):
        raise ArtifactError(f"{path}: sha256 is {_sha256(content)}, initialization.json says {digests.get(name)}")
    return _load_safetensors(content, str(path))


def _load_safetensors(content: bytes, where: str) -> dict[str, Tensor]:
    try:
        return load(content)
    except (SafetensorError, ValueError) as error:
        raise ArtifactError(f"{where}: not a safetensors file: {error}") from error


def _check_peft_config(path: Path, delta: LoRAConfig, lora: LoRA) -> None:
    if not path.is_file():
        raise ArtifactError(f"{path.parent}: adapter_config.json is missing")
    try:
        stated = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{path}: expected a JSON object: {error}") from error
    expected = {"peft_type": "LORA", "r": delta.rank, "lora_alpha": delta.alpha, "target_modules": sorted(lora.sites)}
    for key, value in expected.items():
        if stated.get(key) != value:
            raise ArtifactError(f"{path}: {key}: expected {value!r} as in initialization.json, got {stated.get(key)!r}")
    for key in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform"):
        if stated.get(key):
            raise ArtifactError(f"{path}: {key}: expected nothing, got {stated[key]!r}: PEFT would compute something else")


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}


def _canonical_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
