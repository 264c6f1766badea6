"""Saving and loading of initializations.

An initialization is a folder with these files:

- PEFT's two files with θ, or `delta.safetensors` if PEFT has no such delta;
- `inner_lr.safetensors`, the learning rates of the inner loop;
- `base_update.safetensors`, the parameters of the base model that were learned too, if any;
- `initialization.json`, everything else.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from quickstudy.one_line import shown
from safetensors.torch import save
from torch import Tensor

from metatrain.artifacts.files import (
    FORMAT_VERSION,
    canonical_json,
    contiguous,
    fields_at_default,
    read_at_most,
    read_weights,
    sha256,
    write_atomically,
)
from metatrain.artifacts.header import Leaf, shortened
from metatrain.deltas import DeltaConfig, DeltaKind
from metatrain.deltas.peft_format import PeftFiles
from metatrain.errors import ArtifactError, BaseModelError
from metatrain.inner.config import InnerConfig
from metatrain.inner.problem import Outer
from metatrain.inner.supervised import Supervised
from metatrain.inner.support import Query, Support
from metatrain.models.base import Base
from metatrain.models.description import BaseDescription
from metatrain.models.inputs import AnySpec
from metatrain.pydantic_errors import first_problem
from metatrain.readouts.registry import CLASSES, ReadoutName, readout_kinds

_DESCRIPTION, _BASE_UPDATE = "initialization.json", "base_update.safetensors"
_MAX_JSON_BYTES = 16_000_000
_MAX_RATE_STEPS = 1_000


class InitializationFile(BaseModel):
    """The content of `initialization.json`."""

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
    readout: ReadoutName = CLASSES


@dataclass(frozen=True)
class Initialization:
    """Everything that an inner loop needs besides the support set.

    `theta`: θ of one task, float32. `rates`: the learning rate α for each leaf of the delta and of the readout, [S] or [S, *leaf],
    not negative; S is the number of inner steps with separate rates. `scale`: s, the inverse softmax temperature. `base_update`:
    float32 parameters that replace those of the base model with the same names.

    `digest` covers everything that determines an adapter's weights: base model, delta, inner loop, θ, rates, s, readout and base
    update. It does not cover name, algorithm and provenance.
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
            "inner": self.inner.model_dump(exclude=fields_at_default({"moved", "proximal", "hard_steps", "in_parts"}, self.inner)),
            "scale": self.scale,
            "theta": sha256(save(contiguous(self.theta))),
            "rates": sha256(save(contiguous(self.rates))),
        }
        if self.readout != CLASSES:
            identity["readout"] = self.readout
        if self.base_update:
            identity["base_update"] = sha256(save(contiguous(self.base_update)))
        return sha256(canonical_json(identity))

    def describe(self, weights_sha256: Mapping[str, str]) -> InitializationFile:
        """Return everything but the tensors. `weights_sha256`: the digests of the files that have the tensors."""
        return InitializationFile(
            name=self.name,
            base=self.base,
            delta=self.delta,
            inner=self.inner,
            scale=self.scale,
            algorithm=self.algorithm,
            weights_sha256=dict(weights_sha256),
            provenance=self.provenance,
            readout=self.readout,
        )

    @classmethod
    def from_parts(
        cls, described: InitializationFile, theta: dict[str, Tensor], rates: dict[str, Tensor], base_update: dict[str, Tensor]
    ) -> "Initialization":
        """Return the initialization with this description and these tensors; the inverse of `describe`."""
        return cls(
            name=described.name,
            base=described.base,
            delta=described.delta,
            inner=described.inner,
            theta=theta,
            rates=rates,
            scale=described.scale,
            algorithm=described.algorithm,
            provenance=described.provenance,
            base_update=base_update,
            readout=described.readout,
        )

    def outer(self, device: torch.device) -> Outer:
        """Return θ, rates, scale and base update on `device`, in the form that the inner loop needs."""
        return Outer(self.theta, self.rates, torch.tensor(self.scale), self.base_update).on(device)

    def tasks(
        self,
        base: Base,
        support: Support[Any],
        query: Query[Any] | None = None,
        *,
        steps: int | Sequence[int | None] | None = None,
        seed: int = 0,
    ) -> Supervised:
        """Return tasks that adapt on `base` in the same way as in serving.

        `steps`: the number of inner steps, either one number for all tasks or one for each task; None selects the initialization's
        number. `seed`: seeds the augmented views and the division of a large support set into parts.
        """
        learner = readout_kinds()[self.readout].learner
        return Supervised(base, base.attach(self.delta), learner, self.inner, support, query, steps=steps, seed=seed, serving=True)


def save_initialization(init: Initialization, folder: Path, kind: DeltaKind) -> None:
    """Write `init` to `folder`. `kind`: the delta kind of `init` on its base model.

    `initialization.json` is written last, so every folder that contains this file is complete.
    """
    folder.mkdir(parents=True, exist_ok=True)
    theta = init.theta if kind.peft is None else kind.peft.to_peft(init.theta)
    weights = {_weights_file(kind): save(contiguous(theta)), "inner_lr.safetensors": save(contiguous(init.rates))}
    if init.base_update:
        weights[_BASE_UPDATE] = save(contiguous(init.base_update))
    described = init.describe({name: sha256(content) for name, content in weights.items()})
    for name, content in weights.items():
        write_atomically(folder / name, content)
    if not init.base_update:
        (folder / _BASE_UPDATE).unlink(missing_ok=True)  # left by an earlier initialization in this folder
    if kind.peft is not None:
        config = json.dumps(kind.peft.config(init.base.model), indent=2)
        write_atomically(folder / "adapter_config.json", config.encode() + b"\n")
    write_atomically(
        folder / _DESCRIPTION,
        described.model_dump_json(indent=2, exclude=fields_at_default({"readout"}, described)).encode() + b"\n",
    )


def read_description(folder: Path) -> InitializationFile:
    """Read the `initialization.json` of a folder. Raises ArtifactError if it is missing or not valid."""
    path = folder / _DESCRIPTION
    if not path.is_file():
        raise ArtifactError(f"{folder}: no {_DESCRIPTION} there")
    try:
        return InitializationFile.model_validate_json(read_at_most(path, _MAX_JSON_BYTES))
    except ValidationError as error:
        raise ArtifactError(f"{path}: {first_problem(error, InitializationFile)}") from error


def load_initialization(folder: Path, base: BaseDescription) -> Initialization:
    """Read an initialization for `base` and check every part of it.

    Raises ArtifactError if a check fails. The message states the file, the leaf, the expected value and the actual one.
    """
    path, described = folder / _DESCRIPTION, read_description(folder)
    for key in described.base.identity | base.spec.identity:
        stated, loaded = getattr(described.base, key), getattr(base.spec, key)
        if stated != loaded:
            raise ArtifactError(f"{path}: base.{key} is {stated!r}, the loaded base model {base.spec.model} has {loaded!r}")
    kind = attach_delta(base, described.delta, str(path))
    for name in described.weights_sha256.keys() - {_weights_file(kind), "inner_lr.safetensors", _BASE_UPDATE}:
        raise ArtifactError(f"{path}: weights_sha256: expected no file {shortened(repr(name))}")
    leaves = readout_kinds()[described.readout].leaves
    shapes = kind.shapes if kind.peft is None else kind.peft.shapes
    theta = read_weights(folder / _weights_file(kind), described.weights_sha256, lambda _: shapes)
    rates = read_weights(folder / "inner_lr.safetensors", described.weights_sha256, lambda found: rate_shapes(found, kind, leaves))
    update = _read_base_update(folder / _BASE_UPDATE, described.weights_sha256, base)
    check_rates(rates, f"{folder}/inner_lr.safetensors")
    if kind.peft is not None:
        _check_peft_config(folder / "adapter_config.json", kind.peft)
        theta = kind.peft.from_peft(theta)
    return Initialization.from_parts(described, theta, rates, update)


def _read_base_update(path: Path, digests: Mapping[str, str], base: BaseDescription) -> dict[str, Tensor]:
    """Read the parameters that replace those of `base`, by name. Return an empty dict if there are none.

    Raises ArtifactError if their names or shapes are not those of parameters of `base`.
    """
    if path.name not in digests:
        if path.exists():
            raise ArtifactError(f"{path}: expected no such file, initialization.json does not name it")
        return {}
    shapes = base.parameter_shapes
    update = read_weights(path, digests, lambda stated: {name: shape for name, shape in shapes.items() if name in stated})
    if not update:
        raise ArtifactError(f"{path}: expected at least one parameter, got none")
    return update


def _weights_file(kind: DeltaKind) -> str:
    return "delta.safetensors" if kind.peft is None else "adapter_model.safetensors"


def rate_shapes(stated: Mapping[str, Leaf], kind: DeltaKind, readout: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the expected shapes of the learning rates in a file.

    S is the number of inner steps with separate rates. A leaf with one rate per step has rates [S]; a leaf with a rate for each
    parameter has rates [S, *leaf]. `stated`: the leaves in the file's header, from which S is read. S must be the same for all
    leaves, and at most 1000. `readout`: the names of the readout's leaves, which have rates [S].
    """
    steps = max((leaf.shape[0] for leaf in stated.values() if leaf.shape), default=1)
    expected: dict[str, tuple[int, ...]] = dict.fromkeys((*kind.shapes, *readout), (min(steps, _MAX_RATE_STEPS),))
    for name, shape in kind.shapes.items():
        if name in stated and len(stated[name].shape) > 1:
            expected[name] = (min(steps, _MAX_RATE_STEPS), *shape)
    return expected


def check_rates(rates: Mapping[str, Tensor], where: str) -> None:
    """Raise ArtifactError if a rate is negative. `where` is the beginning of the message."""
    for name, rate in rates.items():
        if (rate < 0).any():
            raise ArtifactError(f"{where}: {name}: expected rates of at least 0, got {float(rate.min())}")


def _check_peft_config(path: Path, files: PeftFiles) -> None:
    if not path.is_file():
        raise ArtifactError(f"{path.parent}: adapter_config.json is missing")
    try:
        stated = json.loads(read_at_most(path, _MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: expected a JSON object: {error}") from error
    if not isinstance(stated, dict):
        raise ArtifactError(f"{path}: expected a JSON object, got {shown(stated)}")
    if (problem := files.problem_in(stated)) is not None:
        raise ArtifactError(f"{path}: {problem}")


def attach_delta(base: BaseDescription, config: DeltaConfig, where: str) -> DeltaKind:
    """Set up the delta that a file describes on `base`, and return its kind.

    Raises ArtifactError if the delta does not fit the model. `where`: the beginning of the message.
    """
    try:
        return base.attach(config)
    except BaseModelError as error:
        raise ArtifactError(f"{where}: delta: {shortened(str(error))}") from error
