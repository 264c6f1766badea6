"""The meta-gradient dL(query)/d(outer), and the modes in which it is computed.

    z_0 = start(outer),  z_{k+1} = U( z_k, g_k(φ_k, outer), α_k ),  L = mean_t L_query,t( φ_K, outer )     z = (φ, optimizer state)

| mode | keeps in memory | result |
|---|---|---|
| first_order | no graph of the inner gradients | FOMAML: the g_k are constants; all else is differentiated, including the rates |
| unrolled | the graph of every step | exact, by reverse mode through the loop |
| checkpointed | z at every m-th step, and the graph of m steps | exact; the backward pass runs each segment of m steps again |
| adjoint | z of each step, and g_k unless `product` is reverse | exact: λ_k = (∂z_{k+1}/∂z_k)ᵀ λ_{k+1}, one product a step |
| auto | the same as the chosen mode | unrolled if its graph fits into `memory_mb`, else adjoint; see `MetaGradient.mode` |
| implicit | only φ_K | exact at a minimum φ_K of the support loss: −(∂²L_s/∂φ∂outer)ᵀ (∂²L_s/∂φ²)⁻¹ ∂L_q/∂φ |

The mode adjoint needs one Hessian-vector product per step, along γ, the cotangent of g_k. The option `product` selects how it is
computed: see metatrain/meta/curvature.py.

References: Finn et al. 2017 (arXiv:1703.03400), eq. 1 and §5.2. Checkpoints: Griewank and Walther 2000 (Algorithm 799). Adjoint:
Maclaurin et al. 2015 (arXiv:1502.03492) and MixFlow-MG (Kemaev et al. 2025, arXiv:2505.00793). Implicit gradient: Rajeswaran et al.
2019 (arXiv:1909.04630) and Lorraine et al. 2020 (arXiv:1911.02590).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from metatrain.inner.inner_loss import differentiable_start
from metatrain.inner.loop import Point, adapt, move, support_gradient, trajectory
from metatrain.inner.optimizers import Moments, Optimizer
from metatrain.inner.problem import Leaves, Outer, Start, Tasks
from metatrain.meta.curvature import PRODUCTS, Reverse
from metatrain.meta.differentiation import Differentiation, Mode
from metatrain.meta.linear_solve import Solution, conjugate_gradient, neumann
from metatrain.meta.named_tensors import add, alive, from_namespace, gradients_of, inner_product, into_namespace, length


@dataclass(frozen=True)
class MetaGradient:
    """A meta-gradient: one gradient for each tensor of `Outer.leaves()`, with measurements.

    `loss`, `accuracy`: means over the T tasks' query sets after the last inner step. `support_loss`: the mean inner loss before
    each step. `mode`: the mode that was used, never "auto".

    The implicit mode adds two numbers, each of which is the maximum over the tasks. `residual`: the relative residual of the linear
    solver. `left`: the norm of the inner gradient at φ_K relative to that at φ_0, which is 0 at a minimum.
    """

    loss: float
    accuracy: float
    support_loss: tuple[float, ...]
    gradients: dict[str, Tensor]
    residual: float | None = None
    mode: Mode = "unrolled"
    left: float | None = None


def mean_gradient(parts: Sequence[tuple[MetaGradient, int]]) -> MetaGradient:
    """Return the mean of several meta-gradients, weighted by their numbers of tasks.

    `parts`: pairs (meta-gradient, number of tasks), with gradients for the same leaves. Losses and accuracies are averaged too.
    `residual` and `left` are the maximum over the parts.
    """
    total = sum(tasks for _, tasks in parts)
    shares = [(part, tasks / total) for part, tasks in parts]
    first = parts[0][0]
    gradients = {name: torch.stack([share * part.gradients[name] for part, share in shares]).sum(0) for name in first.gradients}
    residuals = [part.residual for part, _ in parts if part.residual is not None]
    left = [part.left for part, _ in parts if part.left is not None]
    return MetaGradient(
        sum(share * part.loss for part, share in shares),
        sum(share * part.accuracy for part, share in shares),
        tuple(sum(share * part.support_loss[k] for part, share in shares) for k in range(len(first.support_loss))),
        gradients,
        max(residuals, default=None),
        first.mode,
        max(left, default=None),
    )


def meta_gradient(
    tasks: Tasks,
    outer: Outer,
    optimizer: Optimizer,
    how: Differentiation,
    *,
    steps: int | None = None,
    weights: Sequence[float] | None = None,
) -> MetaGradient:
    """Return the gradient of the mean query loss after the inner loop, with respect to `outer.leaves()`.

    `weights`: one number for each of φ_0 … φ_K. With them, the loss is the weighted sum of the query losses at these points, the
    multi-step loss of Antoniou et al. 2019 (arXiv:1810.09502), §4. `steps`: the number of inner steps; None for `tasks.steps`.

    A tensor that the loss does not depend on gets a zero gradient, for example the rates if there are no inner steps.

    Raises ValueError if these tasks cannot be differentiated in this mode, for a wrong number of weights, and for weights in the
    implicit mode. Raises NonFinite if a support loss is not finite.
    """
    of = tasks.steps if steps is None else steps
    only_last = [0.0] * of + [1.0]
    used = list(only_last if weights is None else weights)
    if len(used) != of + 1:
        raise ValueError(f"weights: expected {of + 1}, one for each of φ_0 … φ_{of}, got {len(used)}")
    if how.second_derivative and tasks.no_second_derivative is not None:
        raise ValueError(f"{how.mode}: {tasks.no_second_derivative}")
    if how.product == "central" and tasks.no_differences is not None:
        raise ValueError(f"{how.mode} with central differences: {tasks.no_differences}")
    if how.mode == "implicit" and used != only_last:
        raise ValueError("weights: expected none for the implicit gradient, which is that of the last inner step alone")
    return _MODES[how.mode](_Procedure(tasks, outer, optimizer, of, used, how.mode), how)


@dataclass(frozen=True)
class _Procedure:
    """The function to differentiate: the inner loop from `outer`, then the weighted query losses."""

    tasks: Tasks
    outer: Outer
    optimizer: Optimizer
    steps: int
    weights: Sequence[float]
    mode: Mode

    def judge(self, phi: Leaves, outer: Outer, step: int) -> tuple[Tensor, Tensor]:
        """Return the query loss and the accuracy at φ_step, each as the mean over tasks."""
        loss, accuracy = self.tasks.query_loss(phi, outer, step, exact=self.mode != "first_order")
        return loss.mean(), accuracy.mean()

    def result(
        self,
        live: Outer,
        of_values: Leaves,
        judged: tuple[Tensor, Tensor],
        support: Sequence[Tensor],
        residual: float | None = None,
        left: float | None = None,
    ) -> MetaGradient:
        gradients = {name: g.detach() for name, g in live.gradients(of_values).items()}
        means = tuple(float(loss.mean()) for loss in support)
        loss, score = float(judged[0].detach()), float(judged[1].detach())
        return MetaGradient(loss, score, means, gradients, residual, self.mode, left)


def _reverse(procedure: _Procedure, how: Differentiation) -> MetaGradient:
    """Differentiate by autograd through the graph of the whole loop: the modes first_order and unrolled."""
    live = procedure.outer.detached(live=True)
    order: Literal["first", "second"] = "first" if how.mode == "first_order" else "second"
    points = trajectory(procedure.tasks, live, procedure.optimizer, steps=procedure.steps, order=order)
    total = torch.zeros(())
    for point in points:
        if point.step == procedure.steps or procedure.weights[point.step]:
            judged = procedure.judge(point.phi, live, point.step)
            total = total + procedure.weights[point.step] * judged[0]
    return procedure.result(live, gradients_of(total, live.values()), judged, point.losses)


def _auto(procedure: _Procedure, how: Differentiation) -> MetaGradient:
    """Use the mode unrolled if the graphs of all steps fit into `memory_mb`, otherwise adjoint.

    To decide, the graph of one inner step is built and measured. The query loss is assumed to need as much memory as one step.
    """
    fits = True
    if procedure.steps:
        live = procedure.outer.detached(live=True)
        start = procedure.tasks.start(live)
        step_bytes = graph_bytes(support_gradient(procedure.tasks, start.phi, live, 0, start, graph=True)[1].values())
        fits = (procedure.steps + 1) * step_bytes <= how.memory_mb * 2**20
    chosen: Mode = "unrolled" if fits else "adjoint"
    return _MODES[chosen](replace(procedure, mode=chosen), how.model_copy(update={"mode": chosen}))


def graph_bytes(results: Iterable[Tensor]) -> int:
    """Return the number of bytes that the autograd graph of these tensors keeps for the backward pass.

    A storage that several tensors share is counted once. Tensors that are not part of the graph, such as the base model's
    parameters and token ids, are not counted.
    """
    pending = [tensor.grad_fn for tensor in results if tensor.grad_fn is not None]
    seen, storages = set(pending), dict[int, int]()
    while pending:
        node: Any = pending.pop()
        for name in dir(node):
            if name.startswith("_saved_") and isinstance(saved := getattr(node, name), Tensor) and saved.grad_fn is not None:
                storages[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        for next_node, _ in node.next_functions:
            if next_node is not None and next_node not in seen:
                seen.add(next_node)
                pending.append(next_node)
    return sum(storages.values())


def _checkpointed(procedure: _Procedure, how: Differentiation) -> MetaGradient:
    """Run forward without a graph and store every m-th z, then go back with one segment's graph at a time.

    z is φ and the optimizer's state; a segment is m = `how.segment` steps. `torch.utils.checkpoint` is not used, because it would
    recompute a step twice: for the gradient inside the step, and in the backward pass.
    """
    start, kept, end, losses = _forward(procedure, every=how.segment)
    back = _Backward.begin(procedure, start, *end)
    judged = back.judge(end[0], procedure.steps)
    for begin in reversed(range(0, procedure.steps, how.segment)):
        phi, state, _ = kept.pop()
        live = procedure.outer.detached(live=True)
        inputs = {
            **into_namespace("phi", alive(phi)),
            **into_namespace("state", alive(state)),
            **into_namespace("outer", live.values()),
        }
        moved, after, total = from_namespace("phi", inputs), from_namespace("state", inputs), torch.zeros(())
        live_start = differentiable_start(procedure.tasks, start, live)
        for step in range(begin, min(begin + how.segment, procedure.steps)):
            if step > begin and procedure.weights[step]:
                total = total + procedure.weights[step] * procedure.judge(moved, live, step)[0]
            gradients = support_gradient(procedure.tasks, moved, live, step, live_start, graph=True)[1]
            moved, after = move(procedure.optimizer, moved, after, gradients, live.rates, step)
        cotangents = gradients_of(total + inner_product(moved, back.phi) + inner_product(after, back.state), inputs)
        back.phi, back.state = from_namespace("phi", cotangents), from_namespace("state", cotangents)
        add(back.outer, from_namespace("outer", cotangents))
        if procedure.weights[begin]:
            back.judge(phi, begin)
    return back.result(judged, losses)


def _adjoint(procedure: _Procedure, how: Differentiation) -> MetaGradient:
    """Run forward without a graph and keep every z, then go back with one Hessian-vector product per step.

    z is φ and the optimizer's state.
    """
    start, kept, end, losses = _forward(procedure, every=1, gradients=how.product != "reverse")
    back = _Backward.begin(procedure, start, *end)
    judged = back.judge(end[0], procedure.steps)
    for step in reversed(range(procedure.steps)):
        phi, state, gradients = kept.pop()
        back.step(how, phi, state, gradients, step)
        if procedure.weights[step]:
            back.judge(phi, step)
    return back.result(judged, losses)


def _forward(
    procedure: _Procedure, *, every: int, gradients: bool = False
) -> tuple[Start, list[tuple[dict[str, Tensor], Moments, dict[str, Tensor]]], tuple[dict[str, Tensor], Moments], list[Tensor]]:
    """Run the inner loop without an autograd graph, and keep what the backward pass needs.

    Returns the start, the kept values, (φ_K, state_K), and the support losses before each step. The kept values are one entry for
    every `every`-th step k: φ_k and the optimizer's state before the step, and g_k, which is empty unless `gradients` is set.
    """
    tasks, optimizer, outer = procedure.tasks, procedure.optimizer, procedure.outer.detached()
    kept: list[tuple[dict[str, Tensor], Moments, dict[str, Tensor]]] = []
    losses: list[Tensor] = []
    with torch.no_grad():
        start = tasks.start(outer).detached()
        phi = start.phi
        state = optimizer.start(phi)
        for step in range(procedure.steps):
            loss, g = support_gradient(tasks, phi, outer, step, start, graph=False)
            losses.append(loss)
            if step % every == 0:
                kept.append((phi, state, g if gradients else {}))
            phi, state = move(optimizer, phi, state, g, outer.rates, step)
    return start, kept, (phi, state), losses


@dataclass
class _Backward:
    """The state of a backward pass over the inner steps.

    `phi`, `state`: λ, the derivatives of the loss with respect to the current step's φ and optimizer state. `outer`: the gradient
    accumulated so far, under the names of `Outer.values()`.
    """

    procedure: _Procedure
    start: Start
    phi: dict[str, Tensor]
    state: dict[str, Tensor]
    outer: dict[str, Tensor]

    @classmethod
    def begin(cls, procedure: _Procedure, start: Start, phi: Leaves, state: Leaves) -> "_Backward":
        return cls(procedure, start, _zeros(phi), _zeros(state), _zeros(procedure.outer.values()))

    def judge(self, phi: Leaves, step: int) -> tuple[Tensor, Tensor]:
        """Add the derivatives of the weighted query loss at φ_step, and return the loss and the accuracy."""
        return _judge_backward(self.procedure, phi, step, self.phi, self.outer)

    def step(self, how: Differentiation, phi: Leaves, state: Leaves, gradients: Leaves, step: int) -> None:
        """Go back over step k = `step`: turn λ_{k+1} into λ_k, and add the step's part of the outer gradient.

        The optimizer's update is differentiated by autograd, and g_k by a Hessian-vector product along γ, the cotangent of g_k.
        `phi`, `state`: φ_k and the optimizer's state before the step. `gradients`: g_k; not read if the product is `Reverse`, which
        computes g_k itself.
        """
        outer = self.procedure.outer
        product = PRODUCTS[how.product](self.procedure.tasks, phi, outer, step, self.start)
        inputs = {
            **into_namespace("phi", alive(phi)),
            **into_namespace("state", alive(state)),
            **into_namespace("g", alive(product.gradient if isinstance(product, Reverse) else gradients)),
            **into_namespace("rates", alive(outer.rates)),
        }
        live_phi, moments, g_k, rates = (from_namespace(name, inputs) for name in ("phi", "state", "g", "rates"))
        moved, after = move(self.procedure.optimizer, live_phi, moments, g_k, rates, step)
        back = gradients_of(inner_product(moved, self.phi) + inner_product(after, self.state), inputs)
        add(self.outer, {f"rates.{name}": g for name, g in from_namespace("rates", back).items()})
        curvature, mixed = product.along(from_namespace("g", back), last=True)
        add(self.outer, mixed)
        self.phi, self.state = from_namespace("phi", back), from_namespace("state", back)
        add(self.phi, curvature)

    def result(self, judged: tuple[Tensor, Tensor], losses: Sequence[Tensor]) -> MetaGradient:
        """Go back through the start, from φ_0 to the outer values, and return the meta-gradient."""
        live = self.procedure.outer.detached(live=True)
        phi_0 = self.procedure.tasks.start(live).phi
        add(self.outer, gradients_of(inner_product(phi_0, self.phi), live.values()))
        return self.procedure.result(live, self.outer, judged, losses)


def _judge_backward(
    procedure: _Procedure, phi: Leaves, step: int, adjoint: dict[str, Tensor], outer_gradient: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Add the derivatives of the weighted query loss at φ_step to `adjoint` (λ) and `outer_gradient`.

    Return the query loss and the accuracy, detached.
    """
    live, outer = alive(phi), procedure.outer.detached(live=True)
    judged = procedure.judge(live, outer, step)
    if procedure.weights[step]:
        both = {**into_namespace("phi", live), **into_namespace("outer", outer.values())}
        gradients = gradients_of(procedure.weights[step] * judged[0], both)
        add(adjoint, from_namespace("phi", gradients))
        add(outer_gradient, from_namespace("outer", gradients))
    return judged[0].detach(), judged[1].detach()


def _implicit(procedure: _Procedure, how: Differentiation) -> MetaGradient:
    """Return the implicit meta-gradient, which assumes that φ_K is a minimum of the inner loss L_s.

    Solve (H + damping I) u = ∂L_q/∂φ for each task; the gradient is ∂L_q/∂outer − (∂²L_s/∂φ∂outer)ᵀ u. L_s is the inner loss of
    step number K, H is its Hessian at φ_K, and L_q is the query loss.
    """
    tasks = procedure.tasks
    outer = procedure.outer.detached()
    end = adapt(tasks, outer, procedure.optimizer, steps=procedure.steps)
    gradient, v = _zeros(outer.values()), _zeros(end.phi)
    judged = _judge_backward(procedure, end.phi, procedure.steps, v, gradient)
    product = PRODUCTS[how.product](tasks, end.phi, procedure.outer, procedure.steps, end.start)

    def hessian(u: Leaves) -> dict[str, Tensor]:
        return {name: h + how.damping * u[name] for name, h in product.along(u)[0].items()}

    solution: Solution
    if how.solver == "cg":
        solution = conjugate_gradient(hessian, v, iterations=how.iterations)
    else:
        solution = neumann(hessian, v, iterations=how.iterations, rate=how.neumann_rate)
    add(gradient, {name: -g for name, g in product.along(solution.x, last=True)[1].items()})
    return procedure.result(outer, gradient, judged, end.losses, solution.residual, _relative_gradient(procedure, outer, end))


def _relative_gradient(procedure: _Procedure, outer: Outer, end: Point) -> float:
    """Return ‖∇L_inner(φ_K)‖ / ‖∇L_inner(φ_0)‖, the maximum over the tasks."""
    points = ((0, end.start.phi), (procedure.steps, end.phi))
    begin, after = (support_gradient(procedure.tasks, phi, outer, k, end.start, graph=False)[1] for k, phi in points)
    return float((length(after) / length(begin).clamp(min=torch.finfo(torch.float32).tiny)).max())


_MODES: dict[Mode, Callable[[_Procedure, Differentiation], MetaGradient]] = {
    "first_order": _reverse,
    "unrolled": _reverse,
    "auto": _auto,
    "checkpointed": _checkpointed,
    "adjoint": _adjoint,
    "implicit": _implicit,
}


def _zeros(leaves: Leaves) -> dict[str, Tensor]:
    return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
