"""The inner loop: θ → φ in a few gradient steps on the support set, for meta-training and serving.

    φ_0 = start(θ)                                      may also read the support set, e.g. for a head of prototypes
    g_k = ∇_φ L_support(φ_k)
    φ_{k+1} = φ_k − α_k ⊙ u(g_0 … g_k)                  u: `metatrain.inner.optimizers`

with one learned rate α per leaf, per leaf and step, or per parameter. T tasks run side by side along the leading axis of every
leaf. Each loss is the mean over one task's rows, and the gradient is that of their sum, so no task influences another. The tasks
define the losses and the start (`metatrain.inner.problem.Tasks`; on a base model `metatrain.inner.supervised`).

Finn et al. 2017 (arXiv:1703.03400), alg. 1; rates as in Li et al. 2017 (arXiv:1707.09835) and Antoniou et al. 2019
(arXiv:1810.09502, §4).
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from metatrain.errors import DeadlineExceeded, NonFinite
from metatrain.inner.inner_loss import inner_loss
from metatrain.inner.optimizers import Moments, Optimizer
from metatrain.inner.problem import Leaves, Outer, Start, Tasks

Order = Literal["first", "second"]


@dataclass(frozen=True)
class Point:
    """The state of the inner loop after `step` of `of` steps.

    `phi`: φ_step, leaves [T, …]. `losses`: the inner loss before each step taken, [T] each. `moments`: the optimizer's state.
    `start`: the start of the steps.
    """

    step: int
    of: int
    phi: dict[str, Tensor]
    losses: tuple[Tensor, ...]
    moments: Moments
    start: Start

    def only(self, which: Sequence[int]) -> "Point":
        """Return the point with only these of its tasks."""
        index = list(which)
        phi, moments = ({name: leaf[index] for name, leaf in leaves.items()} for leaves in (self.phi, self.moments))
        losses = tuple(loss[index] for loss in self.losses)
        return replace(self, phi=phi, losses=losses, moments=moments, start=self.start.only(which))


def adapt(
    tasks: Tasks,
    outer: Outer,
    optimizer: Optimizer,
    *,
    steps: int | None = None,
    order: Order = "first",
    deadline: float = math.inf,
) -> Point:
    """Run the inner loop to its end and return the last point.

    It takes `steps` steps; if None, the largest number that any of the tasks takes. Gradients flow from the result to every part of
    `outer` that requires them. With order="first" the g_k are constants (FOMAML) and everything else is differentiated; with
    order="second" the g_k are differentiated too. If nothing requires a gradient, as in serving, no outer graph is built.
    `deadline` is a time of `time.monotonic`, checked between steps.

    Raises NonFinite for a loss that is not finite, DeadlineExceeded, ValueError for order="second" on tasks without a second
    derivative, and what the tasks raise.
    """
    for point in trajectory(tasks, outer, optimizer, steps=steps, order=order):
        if point.step < point.of and time.monotonic() > deadline:
            raise deadline_exceeded(point.step, point.of)
    return point


def deadline_exceeded(step: int, of: int) -> DeadlineExceeded:
    """Return the error for a task that had taken only `step` of its `of` steps at the deadline."""
    return DeadlineExceeded(f"the inner loop passed its deadline after {step} of {of} steps")


def trajectory(
    tasks: Tasks,
    outer: Outer,
    optimizer: Optimizer,
    *,
    steps: int | None = None,
    order: Order = "first",
    begun: Point | None = None,
    rate_step: int | None = None,
) -> Iterator[Point]:
    """Run the inner loop and yield the points φ_0 … φ_K.

    With `begun` it continues after that point, up to `begun.of` steps, and yields only the points after it. `rate_step`: the step
    whose rates all steps use (−1: the last one); if None, each step uses its own. Other arguments and errors are as in `adapt`.
    """
    second = order == "second"
    if second and tasks.no_second_derivative is not None:
        raise ValueError(f'order="second": {tasks.no_second_derivative}')
    if begun is None:
        start = tasks.start(outer)
        of = max(start.steps) if steps is None else steps
        begun = Point(0, of, start.phi, (), optimizer.start(start.phi), start)
        yield begun
    seen, start = (outer, begun.start) if second else (outer.detached(), begun.start.detached())
    learned = (*outer.values().values(), *(begun.start.phi.values() if second else ()))
    keeps_graph = torch.is_grad_enabled() and any(t.requires_grad for t in learned)
    phi, losses, moments = begun.phi, begun.losses, begun.moments
    for step in range(begun.step, begun.of):
        loss, gradients = support_gradient(tasks, phi, seen, step, start, graph=second)
        start = replace(start, first=None)  # frees its graph
        with torch.set_grad_enabled(keeps_graph):
            phi, moments = move(optimizer, phi, moments, gradients, outer.rates, step, rate_step)
        losses = (*losses, loss)
        yield Point(step + 1, begun.of, phi, losses, moments, start)


def support_gradient(
    tasks: Tasks, phi: Leaves, outer: Outer, step: int, start: Start, *, graph: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the inner loss at φ_k, [T], without its graph, and its gradient g_k.

    With `graph`, g_k is differentiable in φ_k and in what the loss reads of `outer`. Raises NonFinite for a loss that is not
    finite.
    """
    live = {name: _requiring_grad(leaf, graph) for name, leaf in phi.items()}
    with torch.enable_grad():
        loss = inner_loss(tasks, live, outer, step, start)
        if not torch.isfinite(loss).all():
            raise NonFinite(f"the support loss is not finite at inner step {step}")
        gradients = torch.autograd.grad(loss.sum(), list(live.values()), create_graph=graph)
    return loss.detach(), dict(zip(live, gradients, strict=True))


def move(
    optimizer: Optimizer,
    phi: Leaves,
    moments: Leaves,
    gradients: Leaves,
    rates: Leaves,
    step: int,
    rate_step: int | None = None,
) -> tuple[dict[str, Tensor], Moments]:
    """Return φ_{k+1} = φ_k − α_k ⊙ u and the optimizer's moments, differentiable in all tensor arguments.

    `rate_step`: the step whose rates are used; `step` itself if None.
    """
    after, moves = optimizer.update(moments, gradients, step)
    rate_step = step if rate_step is None else rate_step
    return {name: leaf - rate(rates[name], rate_step) * moves[name] for name, leaf in phi.items()}, after


def rate(rates: Tensor, step: int) -> Tensor:
    """Return α of step number `step`: entry min(step, S − 1) of [S, …]."""
    return rates[min(step, rates.shape[0] - 1)]


def _requiring_grad(leaf: Tensor, graph: bool) -> Tensor:
    """Return a tensor equal to `leaf` that a gradient can be taken at.

    It is `leaf` itself if the gradient must stay connected to the graph that made it (`graph`), otherwise detached from that graph.
    """
    if leaf.requires_grad and (graph or leaf.is_leaf):
        return leaf
    return leaf.detach().requires_grad_()
