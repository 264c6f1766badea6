"""The inner loop: θ → φ in a few gradient steps on the support set. The only one; meta-training and serving both call it.

    φ_0 = (θ, linear head from the prototypes of the support set under θ, where the objective has a cross-entropy part)
    g_k = ∇_φ L_support(φ_k)                            L_support: a weighted sum of `metatrain.objectives`
    φ_{k+1} = φ_k − α_k ⊙ u(g_0 … g_k)
    u = g_k for SGD;  u = m_k = β₁ m_{k−1} + g_k for momentum;  u = m̂ / √(v̂ + ε²) for Adam

with one learned rate α per leaf, or per leaf and step. The head that answers is the linear one, moved along (head="linear"), or
made anew under φ_K (head="prototypes"): the prototypes of the support set, and from them `head_steps` Adam steps of cross-entropy
on the head alone, whose features stand still, so that they cost next to nothing.

T tasks run side by side along the leading axis of every leaf; a task's loss is its own mean, and the losses are summed, so no task
feels its neighbours.

Finn et al. 2017 (arXiv:1703.03400), alg. 1; Triantafillou et al. 2020 (arXiv:1903.03096) for the head; rates as in Antoniou et al.
2019 (arXiv:1810.09502, §4); Kingma and Ba 2015 (arXiv:1412.6980), with ε inside the root so that a zero gradient has a derivative.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from metatrain.augment import Augmentation
from metatrain.base.text import TextBase, TokenBatch
from metatrain.deltas import Delta, LoRA
from metatrain.errors import AdaptationError, DeadlineExceeded, NonFinite
from metatrain.heads import Head, linear_from_prototypes
from metatrain.objectives import ObjectiveName, cross_entropy, leave_one_out, supervised_contrastive
from metatrain.support import Support, augmentation_for, batches, has_partners, parts, present

Order = Literal["first", "second"]
_MOST_PARTS = 4
HEAD_LEAVES = ("head.weight", "head.bias")


class InnerConfig(BaseModel):
    """How an initialization is adapted; recorded in it, so that serving runs the loop it was meta-trained through."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    objective: dict[ObjectiveName, Annotated[float, Field(gt=0)]] = Field(default={"cross_entropy": 1.0}, min_length=1)
    head: Literal["linear", "prototypes"] = "linear"
    head_steps: int = Field(default=0, ge=0, le=1000, description="of the head alone, after an inner loop of at least one step")
    optimizer: Literal["sgd", "momentum", "adam"] = "adam"
    steps: int = Field(default=5, ge=0, le=100)
    steps_by_shots: dict[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=0, le=100)]] = Field(
        default={}, description="steps from this many examples a class on, instead of `steps`"
    )
    rows_per_step: int = Field(
        default=128,
        ge=1,
        description="a larger support set is walked through in seeded parts, with the steps for each (of at most 4)",
    )
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    epsilon: float = Field(default=1e-8, gt=0)
    augmentation: Augmentation | None = None

    @model_validator(mode="after")
    def _head_is_taught(self) -> "InnerConfig":
        if self.head == "linear" and "cross_entropy" not in self.objective:
            raise ValueError('head: a linear head moves by cross_entropy alone; add it to objective, or expected head "prototypes"')
        if self.head == "linear" and self.head_steps:
            raise ValueError('head_steps: expected 0 with head "linear", which moves along with the delta')
        if not self.teaches_one_shot and self.steps_for(1, 1) > 0:
            raise ValueError(
                f"objective: {' + '.join(self.objective)} learns nothing from one example a class; add steps_by_shots "
                "{1: 0, 2: …}, augmentation or cross_entropy"
            )
        return self

    def steps_for(self, examples: int, classes: int) -> int:
        """Inner steps for a support set: what is recorded for its mean shots (examples / classes), for each of the first
        `_MOST_PARTS` parts that it is walked through in: more examples need more steps, but not for ever."""
        reached = [shots for shots in self.steps_by_shots if examples >= shots * classes]
        return (self.steps_by_shots[max(reached)] if reached else self.steps) * min(
            _MOST_PARTS, max(1, math.ceil(examples / self.rows_per_step))
        )

    @property
    def teaches_one_shot(self) -> bool:
        """The objective can learn from classes of one example each."""
        return "cross_entropy" in self.objective or self.augmentation is not None

    @property
    def most_steps(self) -> int:
        """Over all shots, for a support set that is taken whole."""
        return max(self.steps, *self.steps_by_shots.values()) if self.steps_by_shots else self.steps


@dataclass(frozen=True)
class Adapted:
    """T adapted deltas (each leaf [T, …]), their heads, and the support loss before each step [steps, T]."""

    delta: dict[str, Tensor]
    head: Head
    support_loss: Tensor


@dataclass(frozen=True)
class Point:
    """Where the inner loop stands after `step` of `of` steps; `adapted()` gives what the loop would return if it ended here."""

    step: int
    of: int
    losses: tuple[Tensor, ...]
    adapted: Callable[[], Adapted]


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
    steps: int | None = None,
    order: Order = "first",
    seed: int = 0,
    deadline: float = math.inf,
    on_step: OnStep | None = None,
) -> Adapted:
    """Run the inner loop: `steps` of them, or as many as `config` has for these shots.

    theta: leaves [T, …] float32. rates: [S] for each leaf of the delta and of the head; step k takes entry min(k, S − 1). scale:
    scalar. Gradients flow from the result to whichever of theta, rates and scale require them; with order="first" the g_k are
    constants (FOMAML) while everything else is kept, with order="second" they are differentiated too. Where nothing requires a
    gradient (serving) no outer graph is built. `deadline` is on `time.monotonic`, looked at between steps. `on_step(k, mean
    support loss before step k)`.

    Raises NonFinite for a loss that is not a number, DeadlineExceeded, AdaptationError where the objective has nothing to teach
    with, and ValueError for order="second" on a base model whose attention has no second derivative and for tasks of one pass that
    ask for different numbers of steps.
    """
    for point in trajectory(base, lora, theta, rates, scale, support, config, steps=steps, order=order, seed=seed):
        if point.step > 0 and on_step is not None:
            on_step(point.step - 1, float(point.losses[-1].mean()))
        if point.step < point.of and time.monotonic() > deadline:
            raise DeadlineExceeded(f"the inner loop passed its deadline after {point.step} of {point.of} steps")
    return point.adapted()


def trajectory(
    base: TextBase,
    lora: LoRA,
    theta: Delta,
    rates: Mapping[str, Tensor],
    scale: Tensor,
    support: Support,
    config: InnerConfig,
    *,
    steps: int | None = None,
    order: Order = "first",
    seed: int = 0,
) -> Iterator[Point]:
    """The inner loop as the points that it passes, φ_0 … φ_K. Arguments and errors as `adapt`."""
    loop = _Loop(base, lora, theta, rates, scale, support, config, steps, order, seed)
    update = _OPTIMIZERS[config.optimizer](config)
    phi = loop.start(theta)
    losses: list[Tensor] = []
    yield loop.point(0, phi, losses)
    for step in range(loop.steps):
        loss, gradients = loop.gradients(step, phi)
        moves = update(gradients)
        phi = {name: leaf - _rate(rates[name], step) * moves[name] for name, leaf in phi.items()}
        losses.append(loss)
        if not torch.isfinite(loss).all():
            raise NonFinite(f"the support loss is not finite at inner step {step}")
        yield loop.point(step + 1, phi, losses)


class _Loop:
    """What stays the same over the steps of one inner loop."""

    def __init__(
        self,
        base: TextBase,
        lora: LoRA,
        theta: Delta,
        rates: Mapping[str, Tensor],
        scale: Tensor,
        support: Support,
        config: InnerConfig,
        steps: int | None,
        order: Order,
        seed: int,
    ) -> None:
        if order == "second" and base.attention != "eager":
            raise ValueError(
                'order="second" needs a base model loaded with attention="eager": fused attention has no second derivative'
            )
        self.base, self.lora, self.rates, self.scale, self.support, self.config = base, lora, rates, scale, support, config
        self.tasks, rows = support.labels.shape
        self.steps = _recorded_steps(config, support) if steps is None else steps
        self.second = order == "second"
        self.serving = not any(t.requires_grad for t in (*theta.values(), *rates.values(), scale))
        self.linear = "cross_entropy" in config.objective  # a linear head is moved along
        augmentation = augmentation_for(support, config.augmentation)
        if self.steps and not self.linear and not has_partners(support, augmentation):
            raise AdaptationError(
                f"the inner objective ({' + '.join(config.objective)}) needs two examples of a class or augmented views, or 0 steps"
            )
        self.batches = batches(base, lora, support, config.rows_per_step, augmentation, seed)
        self.parts = parts(base, lora, support, at_once=not self.serving)
        if rows <= config.rows_per_step and augmentation is None:  # the rows of every step are the rows of the prototypes
            whole = next(self.batches)
            self.batches, self.parts = itertools.repeat(whole), lambda: [whole[0]]
        self.present = present(support)
        self._shared: tuple[dict[str, Tensor], Tensor, Tensor] | None = None

    def start(self, theta: Delta) -> dict[str, Tensor]:
        """φ_0. Its delta equals θ but is a node of its own: g_0 is the partial derivative at a fixed head, although the head, being
        made of prototypes under θ, depends on θ too."""
        phi: dict[str, Tensor] = {name: leaf.view_as(leaf) for name, leaf in theta.items()}
        if not self.linear and self.steps:
            return phi
        rows = self.support.labels.shape[1]
        if self.serving and self.steps and rows <= self.config.rows_per_step:
            # One forward pass serves the prototypes and the first step: nobody differentiates through the head.
            live = {name: leaf.detach().requires_grad_() for name, leaf in theta.items()}
            tokens, labels = next(self.batches)
            self._shared = live, self.features(live, tokens), labels
            head = linear_from_prototypes(self._shared[1].detach()[:, :rows], self.support.labels, self.support.classes)
        else:
            head = self.prototypes(theta)
        return {**phi, "head.weight": head.weight, "head.bias": head.bias}

    def gradients(self, step: int, phi: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """L_support(φ_k) [T], without its graph, and g_k."""
        if step == 0 and self._shared is not None:
            live, features, labels = self._shared
            live |= {name: phi[name].requires_grad_() for name in HEAD_LEAVES}
        else:
            tokens, labels = next(self.batches)
            live = _live(phi, self.second)
            features = self.features(live, tokens)
        head = Head(live["head.weight"], live["head.bias"], self.present) if self.linear else None
        scale = self.scale if self.second else self.scale.detach()
        loss = _support_loss(self.config, head, features, labels, self.support.classes, scale)
        found = torch.autograd.grad(loss.sum(), list(live.values()), create_graph=self.second)
        return loss.detach(), dict(zip(live, found, strict=True))

    def features(self, phi: Mapping[str, Tensor], tokens: TokenBatch) -> Tensor:
        """[T, M, D]"""
        delta = {name: leaf for name, leaf in phi.items() if name not in HEAD_LEAVES}
        return self.base.features(self.lora.fold(delta), tokens).view(self.tasks, -1, self.base.hidden_size)

    def prototypes(self, delta: Mapping[str, Tensor], head_steps: int = 0) -> Head:
        """Of the support set under `delta`, then `head_steps` of Adam on the head alone, at the last of its rates."""
        with torch.set_grad_enabled(not self.serving):
            features = torch.cat([self.features(delta, part) for part in self.parts()], dim=1)
            head = linear_from_prototypes(features, self.support.labels, self.support.classes)
        fixed = (features, self.scale) if self.second else (features.detach(), self.scale.detach())
        psi, update = {"head.weight": head.weight, "head.bias": head.bias}, _adam(self.config)
        with torch.enable_grad():
            for _ in range(head_steps):
                live = _live(psi, self.second)
                moving = Head(live["head.weight"], live["head.bias"], head.present)
                loss = cross_entropy(moving, fixed[0], self.support.labels, fixed[1])
                found = torch.autograd.grad(loss.sum(), list(live.values()), create_graph=self.second)
                moves = update(dict(zip(live, found, strict=True)))
                psi = {name: leaf - self.rates[name][-1] * moves[name] for name, leaf in psi.items()}
        return Head(psi["head.weight"], psi["head.bias"], head.present)

    def point(self, step: int, phi: dict[str, Tensor], losses: Sequence[Tensor]) -> Point:
        so_far = tuple(losses)

        def adapted() -> Adapted:
            delta = {name: leaf for name, leaf in phi.items() if name not in HEAD_LEAVES}
            if "head.weight" in phi and (self.config.head == "linear" or step == 0):
                head = Head(phi["head.weight"], phi["head.bias"], self.present)
            else:
                head = self.prototypes(delta, self.config.head_steps if step else 0)
            return Adapted(delta, head, torch.stack(so_far) if so_far else torch.zeros(0, self.tasks))

        return Point(step, self.steps, so_far, adapted)


def _recorded_steps(config: InnerConfig, support: Support) -> int:
    examples, classes = (support.labels >= 0).sum(1), present(support).sum(1)
    wanted = {config.steps_for(int(n), int(c)) for n, c in zip(examples, classes, strict=True)}
    if len(wanted) > 1:
        raise ValueError(f"tasks of one pass must agree in the number of steps, these take {sorted(wanted)}")
    return wanted.pop()


def _live(phi: Mapping[str, Tensor], second: bool) -> dict[str, Tensor]:
    """The leaves that a gradient is taken at: cut off from what made them in first order, and where nothing did."""
    return {n: leaf if second and leaf.requires_grad else leaf.detach().requires_grad_() for n, leaf in phi.items()}


def _support_loss(config: InnerConfig, head: Head | None, features: Tensor, labels: Tensor, classes: int, scale: Tensor) -> Tensor:
    """The mixture of objectives, [T]."""
    total = features.new_zeros(features.shape[0])
    for name, weight in config.objective.items():
        if name == "leave_one_out":
            part = leave_one_out(features, labels, classes, scale)
        elif name == "supervised_contrastive":
            part = supervised_contrastive(features, labels, scale)
        else:
            assert head is not None
            part = cross_entropy(head, features, labels, scale)
        total = total + weight * part
    return total


def _rate(rate: Tensor, step: int) -> Tensor:
    return rate[min(step, rate.shape[0] - 1)]


Update = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def _sgd(_config: InnerConfig) -> Update:
    return lambda gradients: gradients


def _momentum(config: InnerConfig) -> Update:
    state: dict[str, Tensor] = {}

    def update(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        for name, g in gradients.items():
            state[name] = config.beta1 * state[name] + g if name in state else g
        return dict(state)

    return update


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


_OPTIMIZERS: dict[str, Callable[[InnerConfig], Update]] = {"sgd": _sgd, "momentum": _momentum, "adam": _adam}
