"""Inner optimizers as pure functions of tensors, so that all gradient modes use the same update.

    (state', u) = update(state, g, k)          φ_{k+1} = φ_k − α_k ⊙ u

    SGD        u = g                                                                              no state
    momentum   m' = β₁ m + g,  u = m'
    Adam       m' = β₁ m + (1 − β₁) g,  v' = β₂ v + (1 − β₂) g²,  u = m̂ / √(v̂ + ε²)               m̂, v̂: bias-corrected

Adam's ε is inside the root, so that the root has a derivative at zero. Kingma and Ba 2015 (arXiv:1412.6980), alg. 1, have it
outside.

Adam gives u = 0 to a parameter whose gradients have all been exactly zero, and the derivative of u there is taken as 0, not as 1/ε.
As ε → 0, u tends to the sign of g, whose usual subgradient at 0 is 0. This matters for a LoRA that starts from B = 0, where the
first gradient of A is zero: a slope of 1/ε = 1e8 would dominate an exact meta-gradient.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

OptimizerName = Literal["sgd", "momentum", "adam"]
Moments = dict[str, Tensor]
"""The state of an optimizer by name: `m.{leaf}` and `v.{leaf}`, each with the shape of its leaf; empty for SGD."""
Leaves = Mapping[str, Tensor]


@dataclass(frozen=True)
class Optimizer:
    name: OptimizerName = "adam"
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def start(self, phi: Leaves) -> Moments:
        """Return the state before the first step: zeros."""
        return {f"{moment}.{name}": torch.zeros_like(leaf) for moment in _KEPT[self.name] for name, leaf in phi.items()}

    def update(self, state: Leaves, gradients: Leaves, step: int) -> tuple[Moments, dict[str, Tensor]]:
        """Return the optimizer's new state and the update u of step number `step`, counted from 0.

        Both are differentiable in `state` and `gradients`. The learning rate is not applied to u here.
        """
        return _UPDATES[self.name](self, state, gradients, step)


def _sgd(_optimizer: Optimizer, _state: Leaves, gradients: Leaves, _step: int) -> tuple[Moments, dict[str, Tensor]]:
    return {}, dict(gradients)


def _momentum(optimizer: Optimizer, state: Leaves, gradients: Leaves, _step: int) -> tuple[Moments, dict[str, Tensor]]:
    moves = {name: optimizer.beta1 * state[f"m.{name}"] + g for name, g in gradients.items()}
    return {f"m.{name}": move for name, move in moves.items()}, moves


def _adam(optimizer: Optimizer, state: Leaves, gradients: Leaves, step: int) -> tuple[Moments, dict[str, Tensor]]:
    beta1, beta2 = optimizer.beta1, optimizer.beta2
    after: Moments = {}
    moves = {}
    for name, g in gradients.items():
        m = after[f"m.{name}"] = beta1 * state[f"m.{name}"] + (1 - beta1) * g
        v = after[f"v.{name}"] = beta2 * state[f"v.{name}"] + (1 - beta2) * g * g
        m_hat, v_hat = m / (1 - beta1 ** (step + 1)), v / (1 - beta2 ** (step + 1))
        moved = (m_hat != 0) | (v_hat > 0)  # the square of a tiny gradient can be zero, and such a gradient still moves its number
        moves[name] = torch.where(moved, m_hat / (v_hat + optimizer.epsilon**2).sqrt(), 0.0)
    return after, moves


_KEPT: dict[OptimizerName, tuple[str, ...]] = {"sgd": (), "momentum": ("m",), "adam": ("m", "v")}
_UPDATES: dict[OptimizerName, Callable[[Optimizer, Leaves, Leaves, int], tuple[Moments, dict[str, Tensor]]]] = {
    "sgd": _sgd,
    "momentum": _momentum,
    "adam": _adam,
}
