"""Reptile: θ moves towards the mean of the tasks' adapted parameters.

    θ ← θ + ε_i · (1/T) Σ_t (φ_K,t − θ)

This is an outer SGD step with the pseudo-gradient θ − mean φ_K, where ε_i falls linearly from 1 to 0 by default. The outer
optimizer may also be Adam. The query sets are used only to report loss and accuracy. The inner loop is not differentiated, so
rates, scale and parameters of the base model cannot be learned. With a single inner SGD step, the pseudo-gradient is α times the
gradient of joint training, α ∇L_support(θ).

Nichol, Achiam, Schulman 2018, "On First-Order Meta-Learning Algorithms", arXiv:1803.02999, alg. 2 and table 6: five inner steps of
Adam without momentum (β₁ = 0) at 1e-3.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from metatrain.inner.loop import adapt
from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Outer, Tasks
from metatrain.meta.algorithms.config import AlgorithmConfig
from metatrain.meta.metagrad import MetaGradient
from metatrain.options import Fixed


class Reptile(AlgorithmConfig):
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "inner": {"optimizer": "adam", "beta1": 0.0, "steps": 5},
        "start": {"rate": 1e-3, "head_rate": 1e-3},
        "outer": {"optimizer": "sgd", "learning_rate": 1.0, "decay": "linear", "warmup": 0, "clip": None},
    }

    name: Literal["reptile"] = "reptile"
    learned: tuple[Literal["theta"]] = Field(default=("theta",), description="what the outer loop moves")

    @property
    def moves_base(self) -> bool:
        return False

    @property
    def fixed(self) -> Fixed:
        return {"inner": {"moved": "all"}, "outer": {"anchor": 0.0}}

    def meta_gradient(self, tasks: Tasks, outer: Outer, optimizer: Optimizer, step: int) -> MetaGradient:
        outer = outer.detached()
        end = adapt(tasks, outer, optimizer)
        with torch.no_grad():
            loss, accuracy = tasks.query_loss(end.phi, outer, end.of)
        gradients = {name: torch.zeros_like(leaf) for name, leaf in outer.leaves().items()}
        for name, leaf in end.phi.items():
            if name in outer.theta:
                gradients[f"theta.{name}"] = outer.theta[name] - leaf.detach().mean(0)
        support = tuple(float(losses.mean()) for losses in end.losses)
        return MetaGradient(float(loss.mean()), float(accuracy.mean()), support, gradients, mode="first_order")
