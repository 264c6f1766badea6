"""The inner loop: θ → φ in a few gradient steps on the support set, for meta-training and serving.

    φ_0 = start(θ)                                      may also read the support set, e.g. for a head of prototypes
    g_k = ∇_φ L_support(φ_k)
    φ_{k+1} = φ_k − α_k ⊙ u(g_0 … g_k)                  u: the optimizer's update, `metatrain.inner.optimizers`

φ is a set of named tensors, the leaves. There is one learned rate α per leaf, per leaf and step, or per parameter. T tasks run in
one batch, along the leading axis of every leaf. Each loss is the mean over one task's rows. The gradient is taken of the sum of the
T losses, so no task influences another. The tasks define the losses and the start: see `metatrain.inner.problem.Tasks`, and
`metatrain.inner.supervised` for tasks on a base model.

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

    `phi`: φ_step, named tensors [T, …]. `losses`: one tensor [T] for each step taken, the inner loss before that step. `moments`:
    the optimizer's state. `start`: φ_0 and the values that all steps share.
    """

    step: int
    of: int
    phi: dict[str, Tensor]
    losses: tuple[Tensor, ...]
    moments: Moments
    start: Start

    def only(self, which: Sequence[int]) -> "Point":
        """Return the same point with only the tasks at the indices `which`."""
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
    """Run the whole inner loop and return its last point.

    `steps`: the number of steps; None for the largest number that any task takes. The result is differentiable in every tensor of
    `outer` that requires a gradient. With order="first" the inner gradients g_k are constants (FOMAML), and everything else is
    differentiated. With order="second" the g_k are differentiated too. If nothing requires a gradient, as in serving, no graph is
    kept across steps. `deadline`: a time of `time.monotonic`, checked between steps.

    Raises NonFinite if a loss is not finite, DeadlineExceeded if steps are left at the deadline, ValueError for order="second" on
    tasks without a second derivative, and any error that the tasks raise.
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
    """Run the inner loop and yield a `Point` for each of φ_0 … φ_K.

    `begun`: a point from which to continue, up to step `begun.of`. Only the points after `begun` are then yielded, and `steps` is
    ignored. `rate_step`: the step whose learned rates all steps use, −1 for the last step; None lets each step use its own rates.
    The other arguments and the errors are those of `adapt`, but there is no deadline.
    """
    second = order == "second"
    if second and tasks.no_second_derivative is not None:
        raise ValueError(f'order="second": {tasks.no_second_derivative}')
    if begun is None:
        start = tasks.start(outer)
        of = max(start.steps) if steps is None else steps
        begun = Point(0, of, start.phi, (), optimizer.start(start.phi) if of else {}, start)
        yield begun
    tasks = begun.start.tasks or tasks
    seen, start = (outer, begun.start) if second else (outer.detached(), begun.start.detached())
    learned = (*outer.values().values(), *(begun.start.phi.values() if second else ()))
    keeps_graph = torch.is_grad_enabled() and any(t.requires_grad for t in learned)
    phi, losses, moments = begun.phi, begun.losses, begun.moments
    for step in range(begun.step, begun.of):
        loss, gradients = support_gradient(tasks, phi, seen, step, start, graph=second)
        start = replace(start, first=None)  # only step 0 reads it; dropping it frees its graph
        with torch.set_grad_enabled(keeps_graph):
            phi, moments = move(optimizer, phi, moments, gradients, outer.rates, step, rate_step)
        losses = (*losses, loss)
        yield Point(step + 1, begun.of, phi, losses, moments, start)


def support_gradient(
    tasks: Tasks, phi: Leaves, outer: Outer, step: int, start: Start, *, graph: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the inner loss at φ_k, [T], detached, and its gradient g_k with respect to φ_k.

    `graph`: keep g_k differentiable in φ_k and in the tensors of `outer` that the loss reads. Raises NonFinite if the loss is not
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
    """Apply one optimizer update: return φ_{k+1} = φ_k − α_k ⊙ u and the optimizer's new state.

    Both are differentiable in all tensor arguments. `rate_step`: the step whose rates are used; None for `step` itself.
    """
    after, moves = optimizer.update(moments, gradients, step)
    rate_step = step if rate_step is None else rate_step
    return {name: leaf - rate(rates[name], rate_step) * moves[name] for name, leaf in phi.items()}, after


def rate(rates: Tensor, step: int) -> Tensor:
    """Return the rate α of step number `step`: entry min(step, S − 1) of `rates` [S, …]."""
    return rates[min(step, rates.shape[0] - 1)]


def _requiring_grad(leaf: Tensor, graph: bool) -> Tensor:
    """Return `leaf` as a tensor that requires a gradient.

    `graph`: True keeps `leaf` connected to the tensors from which it was computed, if they require gradients; False detaches it.
    """
    if leaf.requires_grad and (graph or leaf.is_leaf):
        return leaf
    return leaf.detach().requires_grad_()
