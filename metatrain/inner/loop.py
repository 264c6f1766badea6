"""The inner loop: θ → φ in a few gradient steps on the support set. The only one; meta-training and serving both call it.

    φ_0 = start(θ)                                      with what starts from the support set, such as a head of prototypes
    g_k = ∇_φ L_support(φ_k)
    φ_{k+1} = φ_k − α_k ⊙ u(g_0 … g_k)                  u: `metatrain.inner.optimizers`

with one learned rate α per leaf, per leaf and step, or per parameter. T tasks run side by side along the leading axis of every
leaf; a task's loss is its own mean, and the losses are summed, so no task feels its neighbours. What the losses and the start are
is the business of the tasks (`metatrain.inner.problem.Tasks`; on a text encoder `metatrain.inner.supervised`).

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
    """φ after `step` of `of` inner steps, leaves [T, …], the support loss before each step taken, [T] each, the optimizer's
    moments, and the start of the steps."""

    step: int
    of: int
    phi: dict[str, Tensor]
    losses: tuple[Tensor, ...]
    moments: Moments
    start: Start

    def only(self, which: Sequence[int]) -> "Point":
        """These of its tasks."""
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
    """Run the inner loop to its end: `steps` of it, or as many as the tasks take.

    Gradients flow from the result to whatever of `outer` requires them; with order="first" the g_k are constants (FOMAML) while
    everything else is kept, with order="second" they are differentiated too. Where nothing requires a gradient (serving) no outer
    graph is built. `deadline` is on `time.monotonic`, looked at between steps.

    Raises NonFinite for a loss that is not a number, DeadlineExceeded, ValueError for order="second" on tasks that have no second
    derivative, and what the tasks raise.
    """
    for point in trajectory(tasks, outer, optimizer, steps=steps, order=order):
        if point.step < point.of and time.monotonic() > deadline:
            raise late(point.step, point.of)
    return point


def late(step: int, of: int) -> DeadlineExceeded:
    """What became of a task that was still at its steps when the deadline came."""
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
    """Run the inner loop, yielding the points that it passes: φ_0 … φ_K, or those after `begun`, which says how many there are.

    `rate_step`: the step whose rates all steps take (−1: the last one's); each step its own if None. Other arguments and errors as
    `adapt`.
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
        start = replace(start, first=None)  # its graph is not needed any longer
        with torch.set_grad_enabled(keeps_graph):
            phi, moments = move(optimizer, phi, moments, gradients, outer.rates, step, rate_step)
        losses = (*losses, loss)
        yield Point(step + 1, begun.of, phi, losses, moments, start)


def support_gradient(
    tasks: Tasks, phi: Leaves, outer: Outer, step: int, start: Start, *, graph: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """The inner loss at φ_k, [T], without its graph, and g_k; `graph`: differentiable in φ_k and in what the loss reads of `outer`.

    Raises NonFinite for a loss that is not a number.
    """
    live = {name: _live(leaf, graph) for name, leaf in phi.items()}
    with torch.enable_grad():
        loss = inner_loss(tasks, live, outer, step, start)
        if not torch.isfinite(loss).all():
            raise NonFinite(f"the support loss is not finite at inner step {step}")
        found = torch.autograd.grad(loss.sum(), list(live.values()), create_graph=graph)
    return loss.detach(), dict(zip(live, found, strict=True))


def move(
    optimizer: Optimizer,
    phi: Leaves,
    moments: Leaves,
    gradients: Leaves,
    rates: Leaves,
    step: int,
    rate_step: int | None = None,
) -> tuple[dict[str, Tensor], Moments]:
    """φ_{k+1} and the optimizer's moments: a function of its tensors alone, differentiable in all of them."""
    after, moves = optimizer.update(moments, gradients, step)
    at = step if rate_step is None else rate_step
    return {name: leaf - rate(rates[name], at) * moves[name] for name, leaf in phi.items()}, after


def rate(rates: Tensor, step: int) -> Tensor:
    """α of step number `step`: entry min(k, S − 1) of [S, …]."""
    return rates[min(step, rates.shape[0] - 1)]


def _live(leaf: Tensor, graph: bool) -> Tensor:
    """What a gradient is taken at: cut off from what made it in first order, and where nothing did."""
    if leaf.requires_grad and (graph or leaf.is_leaf):
        return leaf
    return leaf.detach().requires_grad_()
