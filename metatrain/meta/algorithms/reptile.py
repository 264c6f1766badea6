"""Reptile: towards where the tasks end up.

    θ ← θ + ε · (1/T) Σ_t (φ_K,t − θ)

that is, an outer optimizer step on the pseudo-gradient θ − mean φ_K. The paper's plain ε is `outer: {optimizer: sgd, learning_rate:
1, clip: 1e9, warmup: 0}`, but that it falls linearly there and by a cosine here; Adam takes the pseudo-gradient too. No query set
is looked at, no derivative of the inner loop is taken, and rates and scale cannot be learned. After one SGD step it is the gradient
of joint training, α ∇L_support(θ).

Nichol, Achiam, Schulman 2018, "On First-Order Meta-Learning Algorithms", arXiv:1803.02999, alg. 2.
"""

from typing import Literal

import torch

from metatrain.inner.loop import adapt
from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Outer, Tasks
from metatrain.meta.algorithms.config import AlgorithmConfig
from metatrain.meta.metagrad import MetaGradient


class Reptile(AlgorithmConfig):
    name: Literal["reptile"] = "reptile"
    order: Literal["first"] = "first"

    @property
    def moves_base(self) -> bool:
        return False

    @property
    def title(self) -> str:
        return self.name

    def meta_gradient(self, tasks: Tasks, outer: Outer, optimizer: Optimizer, step: int) -> MetaGradient:
        still = outer.detached()
        end = adapt(tasks, still, optimizer)
        with torch.no_grad():
            loss, accuracy = tasks.query_loss(end.phi, still, end.of)
        gradients = {name: torch.zeros_like(leaf) for name, leaf in still.leaves().items()}
        for name, leaf in end.phi.items():
            if name in still.theta:
                gradients[f"theta.{name}"] = still.theta[name] - leaf.detach().mean(0)
        support = tuple(float(own.mean()) for own in end.losses)
        return MetaGradient(float(loss.mean()), float(accuracy.mean()), support, gradients, mode="first_order")
