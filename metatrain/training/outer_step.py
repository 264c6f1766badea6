"""The outer optimizer, which moves θ, log α, log s and base-model parameters, and its checkpoint.

    Adam    m ← 0.9 m + 0.1 g,  v ← 0.999 v + 0.001 g²,  leaf ← leaf − η_k m̂ / (√v̂ + 1e-8)
    SGD     leaf ← leaf − η_k g

The gradients of θ and of the base model are first clipped by their joint norm. The learning rate η_k warms up linearly. Then it is
constant or falls to zero, linearly or by a cosine. A step whose gradient is not finite is skipped and counted. Too many skipped
steps in a row stop the training. Adam: Kingma and Ba 2015 (arXiv:1412.6980).
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from quickstudy.one_line import shown_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from metatrain.artifacts.files import write_atomically
from metatrain.errors import DataError, NoMetaGradient, NonFinite, first_line
from metatrain.inner.problem import Outer
from metatrain.meta.metagrad import MetaGradient
from metatrain.options import Section

CHECKPOINT = "checkpoint.safetensors"
_TENSORS = ("leaves", "first_moment", "second_moment", "average", "best_leaves")
_CHECKED_AFTER = 5  # outer steps with a finite gradient


class OuterConfig(Section):
    """The outer loop's optimizer and its schedule.

    An algorithm's `defaults` take precedence over the defaults here.
    """

    steps: int = Field(default=400, ge=1)
    tasks: int = Field(default=4, ge=1, description="tasks in a meta-batch, all with the same weight")
    rows_at_once: int = Field(
        default=400, ge=4, description="most rows of one forward pass; a larger meta-batch or task takes several passes"
    )
    optimizer: Literal["adam", "sgd"] = Field(default="adam", description="sgd is the paper's step for reptile")
    learning_rate: float = Field(default=1e-3, gt=0)
    rate_learning_rate: float = Field(default=1e-2, gt=0, description="learning rate of log α and log s")
    base_learning_rate: float = Field(default=1e-5, gt=0, description="learning rate of the parameters in base.updated")
    clip: float | None = Field(
        default=1.0, gt=0, description="largest norm of the meta-gradient for θ and the base model; None: no limit"
    )
    warmup: int = Field(default=20, ge=0, description="outer steps over which the learning rate rises")
    decay: Literal["cosine", "linear", "none"] = Field(default="cosine", description="how the learning rate falls to zero")
    anchor: float = Field(
        default=0.0, ge=0, description="weight in the loss of the adapted features' distance from the base model's"
    )
    average: float = Field(
        default=0.0, ge=0, lt=1, description="decay of the moving average of the learned leaves that is saved; 0: no average"
    )
    most_skipped: int = Field(default=10, ge=0, description="largest number of steps in a row without a finite gradient")


@dataclass
class OuterState:
    """The mutable state of a training run, which checkpoints store.

    `leaves`: the current tensors of `Outer.leaves()`. `average`: their moving average. `best_leaves`: the leaves that had the best
    validation score. `learned`: the names of the leaves that outer steps move. `unmoved`: the names of the learned leaves of θ and
    the base model whose gradient has been zero in every step so far. `skipped`: the number of outer steps that were skipped because
    their gradient was not finite. `dropped`: the number of tasks that were dropped because their loss or gradient was not finite.
    `fruitless`: the number of validations since the best one. `history_bytes`: the size of the run's history file.
    """

    leaves: dict[str, Tensor]
    first_moment: dict[str, Tensor]
    second_moment: dict[str, Tensor]
    average: dict[str, Tensor]
    best_leaves: dict[str, Tensor]
    learned: set[str]
    unmoved: set[str]
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    dropped: int = 0
    best_score: float = -math.inf
    best_step: int = -1
    fruitless: int = 0
    history_bytes: int = 0

    @classmethod
    def start(cls, outer: Outer, learns: Callable[[str], bool] = lambda leaf: True) -> "OuterState":
        """Return the state before the first outer step.

        `learns`: a function that returns True for the names of the leaves that outer steps move (`Algorithm.learns`).
        """
        leaves = dict(sorted(outer.leaves().items()))  # in the order of a loaded checkpoint, because sums depend on it
        zeros = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        learned = set(filter(learns, leaves))
        return cls(leaves, zeros, dict(zeros), dict(leaves), dict(leaves), learned, set(filter(_is_weight, learned)))

    def kept(self, config: OuterConfig) -> dict[str, Tensor]:
        """Return the leaves to validate and save: the moving average if it is in use, else the current."""
        return self.average if config.average else self.leaves

    def save(self, path: Path, run: str) -> None:
        """Write the state to the checkpoint file `path`, with `run`, the digest of the run."""
        tensors = {f"{kind}/{name}": leaf for kind in _TENSORS for name, leaf in getattr(self, kind).items()}
        scalars = {name: getattr(self, name) for name in _SCALARS} | {"run_digest": run}
        scalars |= {name: sorted(getattr(self, name)) for name in _SETS}
        write_atomically(path, save({n: t.clone() for n, t in tensors.items()}, metadata={"state": json.dumps(scalars)}))

    @classmethod
    def load(cls, path: Path, run: str) -> "OuterState | None":
        """Return the state that `save` wrote to `path`, or None if there is no file.

        `run`: the digest of the run. Raises DataError if the file has the digest of another run, or is damaged.
        """
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                scalars = json.loads(file.metadata()["state"])
                if scalars.pop("run_digest") != run:
                    raise DataError(f"{path} belongs to another recipe, version, base model or data; choose another --out folder")
                tensors: dict[str, Any] = {kind: {} for kind in _TENSORS}
                for key in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                    kind, name = key.split("/", 1)
                    tensors[kind][name] = file.get_tensor(key)
            return cls(**tensors, **{**scalars, **{name: set(scalars[name]) for name in _SETS}})
        except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DataError(f"{shown_path(path)}: not a checkpoint: {first_line(error)}; choose another --out folder") from error


_SCALARS = ("step", "skipped", "skipped_in_a_row", "dropped", "best_score", "best_step", "fruitless", "history_bytes")
_SETS = ("learned", "unmoved")


def outer_step(config: OuterConfig, state: OuterState, gradient: MetaGradient, why: str = "") -> float:
    """Update the learned leaves of `state` by one outer step, and return the norm of the gradient.

    The norm is over the learned leaves of θ and the base model, before clipping. If the gradient is not finite, the step is skipped
    and NaN is returned. The gradients may be on any device. `why`: the reason for a gradient that is not finite; it appears only in
    the error message.

    Raises NonFinite if more than `most_skipped` steps in a row are skipped. Raises NoMetaGradient if a learned leaf of θ or of the
    base model had only zero gradients in the first steps, because then the loss does not depend on it.
    """
    gradients = {name: g for name, g in gradient.gradients.items() if name in state.learned}
    broken = next((name for name, g in gradients.items() if not torch.isfinite(g).all()), None)
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
    _check_all_reached(state, gradients)
    norm = math.hypot(*(float(g.norm()) for n, g in gradients.items() if _is_weight(n)))
    shrink = 1.0 if config.clip is None else min(1.0, config.clip / max(norm, 1e-12))
    steps_taken = state.step - state.skipped
    for name, g in gradients.items():
        g = g.to(state.leaves[name].device) * (shrink if _is_weight(name) else 1.0)
        move = g if config.optimizer == "sgd" else _adam(state, name, g, steps_taken)
        state.leaves[name] = state.leaves[name] - schedule(config, state.step) * _rate(config, name) * move
        state.average[name] = config.average * state.average[name] + (1 - config.average) * state.leaves[name]
    return norm


def _adam(state: OuterState, name: str, gradient: Tensor, steps_taken: int) -> Tensor:
    m = state.first_moment[name] = 0.9 * state.first_moment[name] + 0.1 * gradient
    v = state.second_moment[name] = 0.999 * state.second_moment[name] + 0.001 * gradient * gradient
    return (m / (1 - 0.9**steps_taken)) / ((v / (1 - 0.999**steps_taken)).sqrt() + 1e-8)


def unusable_gradient(leaves: Mapping[str, Tensor]) -> MetaGradient:
    """Return a meta-gradient of NaN in place of one that could not be computed. `outer_step` skips it."""
    gradients = {name: torch.full_like(leaf, math.nan) for name, leaf in leaves.items()}
    return MetaGradient(math.nan, math.nan, (), gradients, mode="first_order")


def schedule(config: OuterConfig, step: int) -> float:
    """Return the factor by which the schedule scales the learning rate in step `step`, counted from 1."""
    warm = min(1.0, step / max(config.warmup, 1))
    return warm * _DECAYS[config.decay]((step - 1) / config.steps)


_DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "none": lambda done: 1.0,
}


def _check_all_reached(state: OuterState, gradients: Mapping[str, Tensor]) -> None:
    state.unmoved -= {name for name, g in gradients.items() if g.any()}
    if state.unmoved and state.step - state.skipped == _CHECKED_AFTER:
        part, first = min(state.unmoved).split(".", 1)
        first = f"base.updated's {first}" if part == "base" else first
        raise NoMetaGradient(
            f"{len(state.unmoved)} of {sum(map(_is_weight, state.leaves))} leaves had no meta-gradient in {_CHECKED_AFTER} outer "
            f"steps, the first of them {first}: the loss does not depend on it"
        )


def _is_weight(name: str) -> bool:
    return name.startswith(("theta.", "base."))


def _rate(config: OuterConfig, name: str) -> float:
    if name.startswith("base."):
        return config.base_learning_rate
    return config.learning_rate if _is_weight(name) else config.rate_learning_rate
