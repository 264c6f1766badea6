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

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from metatrain.augment import Augmentation, embedding_noise, token_view
from metatrain.base.text import TextBase, TokenBatch
from metatrain.deltas import Delta, LoRA
from metatrain.errors import AdaptationError, DeadlineExceeded, NonFinite
from metatrain.heads import Head, linear_from_prototypes
from metatrain.objectives import ObjectiveName, cross_entropy, has_partner, leave_one_out, supervised_contrastive

Order = Literal["first", "second"]
HEAD_LEAVES = ("head.weight", "head.bias")
_CHUNK_ROWS = 128  # rows of one forward pass that keeps no graph; bounds memory, changes no result beyond rounding


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
        default=128, ge=1, description="a larger support set is walked through in seeded parts, with the steps for each"
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
                "{{1: 0, 2: …}}, augmentation or cross_entropy"
            )
        return self

    def steps_for(self, examples: int, classes: int) -> int:
        """Inner steps for a support set: what is recorded for its mean shots (examples / classes), for each part that it is walked
        through in."""
        reached = [shots for shots in self.steps_by_shots if examples >= shots * classes]
        return (self.steps_by_shots[max(reached)] if reached else self.steps) * max(1, math.ceil(examples / self.rows_per_step))

    @property
    def teaches_one_shot(self) -> bool:
        """The objective can learn from classes of one example each."""
        return "cross_entropy" in self.objective or self.augmentation is not None

    @property
    def most_steps(self) -> int:
        """Over all shots, for a support set that is taken whole."""
        return max(self.steps, *self.steps_by_shots.values()) if self.steps_by_shots else self.steps


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
    with, and ValueError for order="second" on a base model whose attention has no second derivative.
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
    if order == "second" and base.attention != "eager":
        raise ValueError(
            'order="second" needs a base model loaded with attention="eager": fused attention has no second derivative'
        )
    tasks, rows = support.labels.shape
    if steps is None:
        steps = config.steps_for(int((support.labels >= 0).sum(1).max()), support.classes)
    serving = not any(t.requires_grad for t in (*theta.values(), *rates.values(), scale))
    linear = "cross_entropy" in config.objective
    whole = None
    if rows <= config.rows_per_step and _augmentation(support, config) is None:
        whole = base.prefix(base.collate(support.ids, tasks), lora)
    batches = _batches(base, support, config, seed) if whole is None else itertools.repeat((whole, support.labels))
    if steps and not linear and not _has_partners(support, config):
        raise AdaptationError(
            f"the inner objective ({' + '.join(config.objective)}) needs two examples of a class or augmented views, or 0 steps"
        )

    parts = _parts(base, lora, support, at_once=not serving) if whole is None else lambda: [whole]

    def prototypes(delta: Mapping[str, Tensor], head_steps: int = 0) -> Head:
        with torch.set_grad_enabled(not serving):
            folded = lora.fold(delta)
            features = torch.cat([base.features(folded, part).view(tasks, -1, base.hidden_size) for part in parts()], dim=1)
            head = linear_from_prototypes(features, support.labels, support.classes)
        return _refined(head, features, support.labels, rates, scale, head_steps, config, order) if head_steps else head

    # φ_0's delta equals θ but is a node of its own: g_0 is the partial derivative at a fixed head, although the head, being made of
    # prototypes under θ, depends on θ too.
    phi: dict[str, Tensor] = {name: leaf.view_as(leaf) for name, leaf in theta.items()}
    present = _present(support)
    # One forward pass serves the prototypes and the first step, where nobody differentiates through the head.
    shared: tuple[dict[str, Tensor], Tensor, Tensor] | None = None
    if serving and linear and steps and rows <= config.rows_per_step:
        live = {name: leaf.detach().requires_grad_() for name, leaf in theta.items()}
        tokens, labels = next(batches)
        shared = live, base.features(lora.fold(live), tokens).view(tasks, -1, base.hidden_size), labels
        head = linear_from_prototypes(shared[1].detach()[:, :rows], support.labels, support.classes)
    elif linear or steps == 0:
        head = prototypes(theta)
    if linear or steps == 0:
        phi |= {"head.weight": head.weight, "head.bias": head.bias}
    losses: list[Tensor] = []

    def here(step: int) -> Point:
        delta, own = {name: leaf for name, leaf in phi.items() if name not in HEAD_LEAVES}, dict(phi)

        def adapted() -> Adapted:
            keep = HEAD_LEAVES[0] in own and (config.head == "linear" or step == 0)
            head = (
                Head(own["head.weight"], own["head.bias"], present) if keep else prototypes(delta, config.head_steps if step else 0)
            )
            return Adapted(delta, head, torch.stack(losses[:step]) if step else torch.zeros(0, tasks))

        return Point(step, steps, tuple(losses), adapted)

    yield here(0)
    update = _OPTIMIZERS[config.optimizer](config)
    fixed_scale = scale if order == "second" else scale.detach()
    for step in range(steps):
        if shared is not None and step == 0:
            live, features, labels = shared
            live |= {name: phi[name].requires_grad_() for name in HEAD_LEAVES}
        else:
            tokens, labels = next(batches)
            live = {
                n: leaf if order == "second" and leaf.requires_grad else leaf.detach().requires_grad_() for n, leaf in phi.items()
            }
            features = base.features(_fold(lora, live), tokens).view(tasks, -1, base.hidden_size)
        live_head = Head(live["head.weight"], live["head.bias"], present) if linear else None
        loss = _support_loss(config, live_head, features, labels, support.classes, fixed_scale)
        gradients = torch.autograd.grad(loss.sum(), list(live.values()), create_graph=order == "second")
        moves = update(dict(zip(live, gradients, strict=True)))
        phi = {name: leaf - _rate(rates[name], step) * moves[name] for name, leaf in phi.items()}
        losses.append(loss.detach())
        if not torch.isfinite(losses[-1]).all():
            raise NonFinite(f"the support loss is not finite at inner step {step}")
        yield here(step + 1)


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


def _fold(lora: LoRA, phi: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return lora.fold({name: leaf for name, leaf in phi.items() if name not in HEAD_LEAVES})


def _present(support: Support) -> Tensor:
    """[T, C]: the task has an example of the class."""
    members = nn.functional.one_hot(support.labels.clamp(min=0), support.classes) * (support.labels >= 0).unsqueeze(-1)
    return members.sum(1) > 0


def _parts(base: TextBase, lora: LoRA, support: Support, *, at_once: bool) -> Callable[[], list[TokenBatch]]:
    """The support rows for prototypes, made when first asked for and kept: at once, or in parts where no graph is."""
    made: list[TokenBatch] = []

    def parts() -> list[TokenBatch]:
        if not made:
            tasks, rows = support.labels.shape
            chunk = rows if at_once else max(1, _CHUNK_ROWS // tasks)
            some = [support.columns(index) for index in torch.split(torch.arange(rows), chunk)]
            made.extend(base.prefix(base.collate(part.ids, tasks), lora) for part in some)
        return made

    return parts


def _refined(
    head: Head,
    features: Tensor,
    labels: Tensor,
    rates: Mapping[str, Tensor],
    scale: Tensor,
    steps: int,
    config: InnerConfig,
    order: Order,
) -> Head:
    """`steps` of Adam on the head alone, at the last of the head's rates: features [T, M, D] as they are."""
    psi = {"head.weight": head.weight, "head.bias": head.bias}
    update = _adam(config)
    second = order == "second"
    fixed = (features, scale) if second else (features.detach(), scale.detach())
    with torch.enable_grad():
        for _ in range(steps):
            live = {n: leaf if second and leaf.requires_grad else leaf.detach().requires_grad_() for n, leaf in psi.items()}
            loss = cross_entropy(Head(live["head.weight"], live["head.bias"], head.present), fixed[0], labels, fixed[1])
            gradients = torch.autograd.grad(loss.sum(), list(live.values()), create_graph=second)
            moves = update(dict(zip(live, gradients, strict=True)))
            psi = {name: leaf - rates[name][-1] * moves[name] for name, leaf in psi.items()}
    return Head(psi["head.weight"], psi["head.bias"], head.present)


def _augmentation(support: Support, config: InnerConfig) -> Augmentation | None:
    """The augmentation, where these support sets are small enough for it."""
    if config.augmentation is None:
        return None
    members = nn.functional.one_hot(support.labels.clamp(min=0), support.classes) * (support.labels >= 0).unsqueeze(-1)
    return config.augmentation if int(members.sum(1).max()) <= config.augmentation.up_to_shots else None


def _has_partners(support: Support, config: InnerConfig) -> bool:
    """Every task has a row with another of its class."""
    return _augmentation(support, config) is not None or bool(has_partner(support.labels).any(1).all())


def _batches(base: TextBase, support: Support, config: InnerConfig, seed: int) -> Iterator[tuple[TokenBatch, Tensor]]:
    """The rows of each step, where they are not the same at all: seeded permutations of the support set cut into near-equal parts,
    each row followed by its augmented views, if any, drawn anew at every step."""
    tasks, rows = support.labels.shape
    augmentation = _augmentation(support, config)
    generator = torch.Generator().manual_seed(seed)
    count = math.ceil(rows / config.rows_per_step)
    for step in itertools.count():
        if step % count == 0:
            parts = list(torch.randperm(rows, generator=generator).tensor_split(count)) if count > 1 else [torch.arange(rows)]
        index = parts[step % count]
        part = support.columns(index)
        if augmentation is None:
            yield base.collate(part.ids, tasks), part.labels
        else:
            yield _with_views(base, part, index.tolist(), augmentation, (seed, step))


def _with_views(
    base: TextBase, part: Support, index: Sequence[int], augmentation: Augmentation, seed: tuple[int, int]
) -> tuple[TokenBatch, Tensor]:
    """Each task's rows as they are, then each of its views: [T, m · views]."""
    tasks, rows = part.labels.shape
    mask = base.mask_token
    ids: list[Sequence[int]] = []
    noise: dict[int, NDArray[np.float32]] = {}
    for t in range(tasks):
        own = part.ids[t * rows : (t + 1) * rows]
        ids += own
        for view in range(1, augmentation.views):
            for i, row in zip(index, own, strict=True):
                key = (*seed, view, i)
                if augmentation.kind == "embedding_noise" and row:
                    noise[len(ids)] = embedding_noise(len(row), base.hidden_size, augmentation.strength, key)
                ids.append(token_view(row, augmentation.kind, augmentation.strength, mask, key))
    return base.collate(ids, tasks, noise or None), part.labels.repeat(1, augmentation.views)


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
