"""dL(query)/d(θ, α, s): the gradient that the outer loop follows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metatrain.base.text import Attention, TextBase
from metatrain.deltas import LoRA
from metatrain.deltas.lora import stack
from metatrain.inner import HEAD_LEAVES, Adapted, InnerConfig, Order, adapt
from metatrain.objectives import cross_entropy
from metatrain.taskbatch import TaskBatch

Mode = Literal["first_order", "unrolled"]
ATTENTION: dict[Mode, Attention] = {"first_order": "auto", "unrolled": "eager"}
"""The attention that each mode needs: only a second derivative rules the fused one out."""


@dataclass(frozen=True)
class Outer:
    """What meta-training moves: `theta` (one task's delta), `log_rates` (log α, [S] per leaf of φ:
    one rate for each of the first S steps, the last for all that follow), `log_scale` (log s)."""

    theta: dict[str, Tensor]
    log_rates: dict[str, Tensor]
    log_scale: Tensor

    @classmethod
    def start(cls, theta: Mapping[str, Tensor], rate: float, head_rate: float, scale: float, *, steps: int = 1) -> "Outer":
        """The same rate for every leaf of the delta, and for each of `steps` steps."""
        rates = {name: head_rate if name in HEAD_LEAVES else rate for name in (*theta, *HEAD_LEAVES)}
        return cls(dict(theta), {n: torch.full((steps,), r).log() for n, r in rates.items()}, torch.tensor(scale).log())

    def leaves(self) -> dict[str, Tensor]:
        """Every tensor under one flat name."""
        named = {f"theta.{n}": t for n, t in self.theta.items()} | {f"log_rates.{n}": t for n, t in self.log_rates.items()}
        return {**named, "log_scale": self.log_scale}

    @classmethod
    def from_leaves(cls, leaves: Mapping[str, Tensor]) -> "Outer":
        def under(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): t for name, t in leaves.items() if name.startswith(prefix)}

        return cls(under("theta."), under("log_rates."), leaves["log_scale"])

    def rates(self) -> dict[str, Tensor]:
        return {name: log.exp() for name, log in self.log_rates.items()}


@dataclass(frozen=True)
class MetaGradient:
    """Mean query loss and accuracy over the T tasks, and the gradient of that loss for every leaf of `Outer.leaves()`."""

    loss: float
    accuracy: float
    support_loss: tuple[float, ...]
    gradients: dict[str, Tensor]


def meta_gradient(
    base: TextBase, lora: LoRA, outer: Outer, batch: TaskBatch, inner: InnerConfig, mode: Mode, *, anchor: float = 0.0
) -> MetaGradient:
    """The gradient of the mean query loss after adaptation, plus `anchor` times the mean distance 1 − cos of the adapted query
    features from the base model's own.

    mode="unrolled" differentiates through every inner step and is exact (Finn et al. 2017, arXiv:1703.03400, eq. 1);
    mode="first_order" takes the inner gradients g_k for constants and keeps the rest: the paths through φ_0 (θ and the
    prototypes under θ) and, exactly in that approximation, ∂L/∂α_leaf = −⟨∂L/∂φ_K, Σ_k u_k⟩ (Li et al. 2017, arXiv:1707.09835).

    A leaf that the loss cannot reach gets a zero gradient (with no inner steps the rates are such leaves).
    """
    leaves = {name: leaf.detach().to(base.device).requires_grad_() for name, leaf in outer.leaves().items()}
    live = Outer.from_leaves(leaves)
    tasks = batch.query_labels.shape[0]
    order: Order = "second" if mode == "unrolled" else "first"
    scale = live.log_scale.exp()
    adapted = adapt(base, lora, stack(live.theta, tasks), live.rates(), scale, batch.support, inner, order=order)
    features = _query_features(base, lora, adapted, batch)
    loss = cross_entropy(adapted.head, features, batch.query_labels, scale)
    accuracy = _accuracy(adapted, features, scale, batch)
    objective = loss.mean()
    if anchor > 0:
        with torch.no_grad():
            own = base.features(None, batch.query_tokens).view_as(features)
        valid = batch.query_labels >= 0
        objective = objective + anchor * (1 - (features * own).sum(-1))[valid].mean()
    gradients = torch.autograd.grad(objective, list(leaves.values()), allow_unused=True)
    reached = dict(zip(leaves, gradients, strict=True))
    found = {n: torch.zeros_like(leaf) if (g := reached[n]) is None else g.to(leaf.device) for n, leaf in outer.leaves().items()}
    support_loss = tuple(adapted.support_loss.mean(1).tolist())
    return MetaGradient(float(loss.detach().mean()), float(accuracy.mean()), support_loss, found)


def query_loss(base: TextBase, lora: LoRA, adapted: Adapted, scale: Tensor, batch: TaskBatch) -> tuple[Tensor, Tensor]:
    """Cross-entropy and accuracy of each task's query rows under its own φ: ([T], [T])."""
    features = _query_features(base, lora, adapted, batch)
    return cross_entropy(adapted.head, features, batch.query_labels, scale), _accuracy(adapted, features, scale, batch)


def _query_features(base: TextBase, lora: LoRA, adapted: Adapted, batch: TaskBatch) -> Tensor:
    tasks = batch.query_labels.shape[0]
    return base.features(lora.fold(adapted.delta), batch.query_tokens).view(tasks, -1, base.hidden_size)


def _accuracy(adapted: Adapted, features: Tensor, scale: Tensor, batch: TaskBatch) -> Tensor:
    hits = adapted.head.logits(features, scale).argmax(-1) == batch.query_labels
    return hits.float().sum(1) / (batch.query_labels >= 0).sum(1).clamp(min=1)
