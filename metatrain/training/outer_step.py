"""One step of the outer optimizer on θ, log α, log s and parameters of the base model; the state of a run as a checkpoint.

    Adam    m ← 0.9 m + 0.1 g,  v ← 0.999 v + 0.001 g²,  leaf ← leaf − η_k m̂ / (√v̂ + 1e-8)
    SGD     leaf ← leaf − η_k g                                                                g clipped to a norm over weights

η_k warms up linearly and falls to zero by a cosine. A step whose gradient is not finite is skipped and counted; a run of them stops
the training. Kingma and Ba 2015 (arXiv:1412.6980).
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from metatrain.artifacts.files import write_atomically
from metatrain.errors import DataError, NoMetaGradient, NonFinite
from metatrain.inner.problem import Outer
from metatrain.meta.metagrad import MetaGradient

CHECKPOINT = "checkpoint.safetensors"
_TENSORS = ("leaves", "first_moment", "second_moment", "average", "best_leaves")
_NOTICED_AFTER = 5


class OuterConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=400, ge=1)
    tasks: int = Field(default=4, ge=1)
    optimizer: Literal["adam", "sgd"] = Field(default="adam", description="sgd with reptile: the paper's step")
    learning_rate: float = Field(default=1e-3, gt=0)
    rate_learning_rate: float = Field(default=1e-2, gt=0, description="of log α and log s")
    base_learning_rate: float = Field(default=1e-5, gt=0, description="of what base.updated names of the base model")
    clip: float = Field(default=1.0, gt=0, description="largest norm of the meta-gradient for θ and the base model")
    warmup: int = Field(default=20, ge=0)
    anchor: float = Field(default=0.0, ge=0, description="weight of the adapted features' distance from the base model's")
    average: float = Field(
        default=0.0, ge=0, lt=1, description="decay of the average over outer steps that is kept of all that is learned; 0: none"
    )
    most_skipped: int = Field(default=10, ge=0, description="steps in a row that may have a gradient that is not finite")


@dataclass
class OuterState:
    """All that changes during a run. `unmoved`: leaves of θ, and of the base model, that have had no gradient yet."""

    leaves: dict[str, Tensor]
    first_moment: dict[str, Tensor]
    second_moment: dict[str, Tensor]
    average: dict[str, Tensor]
    best_leaves: dict[str, Tensor]
    unmoved: set[str]
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best_score: float = -math.inf
    best_step: int = -1
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def start(cls, outer: Outer) -> "OuterState":
        leaves = dict(sorted(outer.leaves().items()))  # the order that a checkpoint gives back: sums depend on it
        zeros = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        unmoved = {name for name in leaves if _is_weight(name)}
        return cls(leaves, zeros, dict(zeros), dict(leaves), dict(leaves), unmoved)

    def kept(self, config: OuterConfig) -> dict[str, Tensor]:
        """The leaves that are validated and saved."""
        return self.average if config.average else self.leaves

    def save(self, path: Path, run: str) -> None:
        """Everything, under the name of the run that it belongs to."""
        tensors = {f"{kind}/{name}": leaf for kind in _TENSORS for name, leaf in getattr(self, kind).items()}
        scalars = {name: getattr(self, name) for name in _SCALARS} | {"run_digest": run, "unmoved": sorted(self.unmoved)}
        write_atomically(path, save({n: t.clone() for n, t in tensors.items()}, metadata={"state": json.dumps(scalars)}))

    @classmethod
    def load(cls, path: Path, run: str) -> "OuterState | None":
        """What `save` wrote, or None where there is nothing. Raises DataError for a checkpoint of another run."""
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as file:
            scalars = json.loads(file.metadata()["state"])
            if scalars.pop("run_digest") != run:
                raise DataError(f"{path} belongs to another recipe, base model or data; choose another --out folder")
            tensors: dict[str, Any] = {kind: {} for kind in _TENSORS}
            for key in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                kind, name = key.split("/", 1)
                tensors[kind][name] = file.get_tensor(key)
        return cls(**tensors, **{**scalars, "unmoved": set(scalars["unmoved"])})


_SCALARS = ("step", "skipped", "skipped_in_a_row", "best_score", "best_step", "history")


def outer_step(config: OuterConfig, state: OuterState, gradient: MetaGradient, why: str = "") -> float:
    """One step on all outer leaves, which moves gradients from other devices to them; `why`: of a gradient that could not be taken.
    Returns the norm of the gradient of θ and the base model before clipping, NaN for a step that was skipped.

    Raises NonFinite after `most_skipped` skipped steps in a row, and NoMetaGradient where a leaf of θ has had a gradient of zero in
    each of the first steps: the loss does not depend on it.
    """
    broken = next((name for name, g in gradient.gradients.items() if not torch.isfinite(g).all()), None)
    state.step += 1
    if broken is not None:
        state.skipped, state.skipped_in_a_row = state.skipped + 1, state.skipped_in_a_row + 1
        if state.skipped_in_a_row > config.most_skipped:
            raise NonFinite(
                f"the meta-gradient of {broken} is not finite at outer step {state.step - 1}, "
                f"the last of {state.skipped_in_a_row} such steps" + (f": {why}" if why else "")
            )
        return math.nan
    state.skipped_in_a_row = 0
    _notice(state, gradient)
    norm = math.hypot(*(float(g.norm()) for n, g in gradient.gradients.items() if _is_weight(n)))
    shrink = min(1.0, config.clip / max(norm, 1e-12))
    taken = state.step - state.skipped
    for name, g in gradient.gradients.items():
        g = g.to(state.leaves[name].device) * (shrink if _is_weight(name) else 1.0)
        move = g if config.optimizer == "sgd" else _adam(state, name, g, taken)
        state.leaves[name] = state.leaves[name] - schedule(config, state.step) * _rate(config, name) * move
        state.average[name] = config.average * state.average[name] + (1 - config.average) * state.leaves[name]
    return norm


def _adam(state: OuterState, name: str, gradient: Tensor, taken: int) -> Tensor:
    m = state.first_moment[name] = 0.9 * state.first_moment[name] + 0.1 * gradient
    v = state.second_moment[name] = 0.999 * state.second_moment[name] + 0.001 * gradient * gradient
    return (m / (1 - 0.9**taken)) / ((v / (1 - 0.999**taken)).sqrt() + 1e-8)


def unusable_gradient(leaves: Mapping[str, Tensor]) -> MetaGradient:
    """What stands for a meta-gradient that could not be taken: a step that `outer_step` skips."""
    gradients = {name: torch.full_like(leaf, math.nan) for name, leaf in leaves.items()}
    return MetaGradient(math.nan, math.nan, (), gradients, mode="first_order")


def schedule(config: OuterConfig, step: int) -> float:
    """The share of the learning rate that step number `step`, from 1, takes."""
    warm = min(1.0, step / max(config.warmup, 1))
    return warm * 0.5 * (1 + math.cos(math.pi * (step - 1) / config.steps))


def _notice(state: OuterState, gradient: MetaGradient) -> None:
    state.unmoved -= {name for name, g in gradient.gradients.items() if g.any()}
    if state.unmoved and state.step - state.skipped == _NOTICED_AFTER:
        part, first = min(state.unmoved).split(".", 1)
        first = f"base.updated's {first}" if part == "base" else first
        raise NoMetaGradient(
            f"{len(state.unmoved)} of {sum(map(_is_weight, state.leaves))} leaves had no meta-gradient in {_NOTICED_AFTER} outer "
            f"steps, the first of them {first}: the loss does not depend on it"
        )


def _is_weight(name: str) -> bool:
    return name.startswith(("theta.", "base."))


def _rate(config: OuterConfig, name: str) -> float:
    if name.startswith("base."):
        return config.base_learning_rate
    return config.learning_rate if _is_weight(name) else config.rate_learning_rate
