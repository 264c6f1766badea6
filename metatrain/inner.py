"""The inner loop: θ → φ in a few gradient steps on the support set. The only one; meta-training and serving both call it.

    φ_0 = (θ, head from prototypes of the support set under θ)
    g_k = ∇_φ L_support(φ_k)
    φ_{k+1} = φ_k − α ⊙ u(g_0 … g_k)        u = g_k for SGD; Adam's m̂ / √(v̂ + ε²) for Adam

with one learned rate α per leaf. T tasks run side by side along the leading axis of every leaf; a task's loss is its own mean,
and the losses are summed, so no task feels its neighbours.

Finn et al. 2017 (arXiv:1703.03400), alg. 1; Triantafillou et al. 2020 (arXiv:1903.03096) for the head; Kingma and Ba 2015
(arXiv:1412.6980), with ε inside the root so that a zero gradient has a derivative.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from metatrain.base.text import TextBase, TokenBatch
from metatrain.deltas import Delta, LoRA
from metatrain.errors import DeadlineExceeded, NonFinite
from metatrain.heads import Head, linear_from_prototypes
from metatrain.objectives import cross_entropy

Order = Literal["first", "second"]
HEAD_LEAVES = ("head.weight", "head.bias")
_CHUNK_ROWS = 128  # rows of one forward pass that keeps no graph; bounds memory, changes no result beyond rounding


class InnerConfig(BaseModel):
    """How an initialization is adapted; recorded in it, so that serving runs the loop it was meta-trained through."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    objective: Literal["cross_entropy"] = "cross_entropy"
    optimizer: Literal["sgd", "adam"] = "adam"
    steps: int = Field(default=5, ge=0, le=100)
    rows_per_step: int = Field(default=128, ge=1, description="a larger support set is walked through in seeded minibatches")
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)


@dataclass(frozen=True)
class Support:
    """T support sets of M rows each: `ids`, token ids of T·M rows, task-major, an empty row for padding; `labels` [T, M] int64,
    −1 for padding; C classes."""

    ids: Sequence[Sequence[int]]
    labels: Tensor
    classes: int

    def columns(self, index: Tensor) -> "Support":
        """The rows `index` [m] of every task."""
        tasks, rows = self.labels.shape
        ids = [self.ids[t * rows + i] for t in range(tasks) for i in index.tolist()]
        return Support(ids, self.labels[:, index.to(self.labels.device)], self.classes)


@dataclass(frozen=True)
class Adapted:
    """T adapted deltas (each leaf [T, …]), their heads, and the support loss before each step [steps, T]."""

    delta: dict[str, Tensor]
    head: Head
    support_loss: Tensor


OnStep = Callable[[int, float], None]


def adapt(
    base: TextBase,
    lora: LoRA,
    theta: Delta,
    rates: Mapping[str, Tensor],
    scale: Tensor,
    support: Support,
    config: InnerConfig,
    *,
    order: Order = "first",
    seed: int = 0,
    deadline: float = math.inf,
    on_step: OnStep | None = None,
) -> Adapted:
    """Run the inner loop.

    theta: leaves [T, …] float32. rates: one scalar per leaf of the delta and per head leaf. scale: scalar. Gradients flow from
    the result to whichever of theta, rates and scale require them; with order="first" the g_k are constants (FOMAML) while
    everything else is kept, with order="second" they are differentiated too. Where nothing requires a gradient (serving) no
    outer graph is built. `deadline` is on `time.monotonic`, looked at between steps. `on_step(k, mean support loss)`.

    Raises NonFinite for a loss that is not a number, DeadlineExceeded, and ValueError for order="second" on a base model whose
    attention has no second derivative.
    """
    if order == "second" and base.attention != "eager":
        raise ValueError(
            'order="second" needs a base model loaded with attention="eager": fused attention has no second derivative'
        )
    tasks = support.labels.shape[0]
    serving = not any(t.requires_grad for t in (*theta.values(), *rates.values(), scale))
    shared_pass = serving and config.steps > 0 and support.labels.shape[1] <= config.rows_per_step
    batches = _minibatches(base, support, config.rows_per_step, seed)
    if shared_pass:
        # One forward pass serves the prototypes and the first step: nobody differentiates through the head.
        live = {name: leaf.detach().requires_grad_() for name, leaf in theta.items()}
        whole, _ = next(batches)
        features = base.features(lora.fold(live), whole).view(tasks, -1, base.hidden_size)
        head = linear_from_prototypes(features.detach(), support.labels, support.classes)
    else:
        head = _initial_head(base, lora, theta, support, keep_graph=not serving)
    # φ_0's delta equals θ but is a node of its own: g_0 is the partial derivative at a fixed head, although the head, being made of
    # prototypes under θ, depends on θ too.
    phi: dict[str, Tensor] = {name: leaf.view_as(leaf) for name, leaf in theta.items()}
    phi |= {"head.weight": head.weight, "head.bias": head.bias}
    update = _OPTIMIZERS[config.optimizer](config)
    losses: list[Tensor] = []
    for step in range(config.steps):
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"the inner loop passed its deadline after {step} of {config.steps} steps")
        tokens, labels = next(batches)
        if step == 0 and shared_pass:
            live |= {name: phi[name].requires_grad_() for name in HEAD_LEAVES}
        else:
            live = {
                n: leaf if order == "second" and leaf.requires_grad else leaf.detach().requires_grad_() for n, leaf in phi.items()
            }
            features = base.features(_fold(lora, live), tokens).view(tasks, -1, base.hidden_size)
        live_head = Head(live["head.weight"], live["head.bias"], head.present)
        loss = cross_entropy(live_head, features, labels, scale if order == "second" else scale.detach())
        gradients = torch.autograd.grad(loss.sum(), list(live.values()), create_graph=order == "second")
        moves = update(dict(zip(live, gradients, strict=True)))
        phi = {name: leaf - rates[name] * moves[name] for name, leaf in phi.items()}
        losses.append(loss.detach())
        if not torch.isfinite(losses[-1]).all():
            raise NonFinite(f"the support loss is not finite at inner step {step}")
        if on_step is not None:
            on_step(step, float(losses[-1].mean()))
    delta = {name: leaf for name, leaf in phi.items() if name not in HEAD_LEAVES}
    support_loss = torch.stack(losses) if losses else torch.zeros(0, tasks)
    return Adapted(delta, Head(phi["head.weight"], phi["head.bias"], head.present), support_loss)


def _fold(lora: LoRA, phi: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return lora.fold({name: leaf for name, leaf in phi.items() if name not in HEAD_LEAVES})


def _initial_head(base: TextBase, lora: LoRA, theta: Delta, support: Support, *, keep_graph: bool) -> Head:
    tasks, rows = support.labels.shape
    folded = lora.fold(theta)
    with torch.set_grad_enabled(keep_graph):
        chunk = rows if keep_graph else max(1, _CHUNK_ROWS // tasks)
        parts = [support.columns(index) for index in torch.split(torch.arange(rows), chunk)]
        features = [base.features(folded, base.collate(p.ids, tasks)).view(tasks, -1, base.hidden_size) for p in parts]
        return linear_from_prototypes(torch.cat(features, dim=1), support.labels, support.classes)


def _minibatches(base: TextBase, support: Support, rows_per_step: int, seed: int) -> Iterator[tuple[TokenBatch, Tensor]]:
    """The whole support set at every step while it fits; beyond that, seeded permutations cut into near-equal parts."""
    tasks, rows = support.labels.shape
    if rows <= rows_per_step:
        whole = base.collate(support.ids, tasks), support.labels
        while True:
            yield whole
    generator = torch.Generator().manual_seed(seed)
    while True:
        for index in torch.randperm(rows, generator=generator).tensor_split(math.ceil(rows / rows_per_step)):
            part = support.columns(index)
            yield base.collate(part.ids, tasks), part.labels


Update = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def _sgd(_config: InnerConfig) -> Update:
    return lambda gradients: gradients


def _adam(config: InnerConfig) -> Update:
    state: dict[str, tuple[Tensor, Tensor]] = {}
    taken = 0

    def update(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        nonlocal taken
        taken += 1
        moves = {}
        for name, g in gradients.items():
            m, v = state.get(name, (torch.zeros_like(g), torch.zeros_like(g)))
            m = config.beta1 * m + (1 - config.beta1) * g
            v = config.beta2 * v + (1 - config.beta2) * g * g
            state[name] = m, v
            m_hat, v_hat = m / (1 - config.beta1**taken), v / (1 - config.beta2**taken)
            moves[name] = m_hat / (v_hat + config.epsilon**2).sqrt()
        return moves

    return update


_OPTIMIZERS: dict[str, Callable[[InnerConfig], Update]] = {"sgd": _sgd, "adam": _adam}
