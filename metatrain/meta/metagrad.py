"""dL(query)/d(outer): the gradient that the outer loop follows, and the ways to take it.

    z_0 = start(outer),  z_{k+1} = U( z_k, g_k(φ_k, outer), α_k ),  L = mean_t L_query,t( φ_K, outer )     z = (φ, optimizer)

| mode | keeps | gives |
|---|---|---|
| first_order | nothing of the steps | the g_k taken for constants (FOMAML): all else, the rates' gradient included, is kept |
| unrolled | the graph of every step | exact, by reverse mode through the loop |
| checkpointed | z at every m-th step, the graph of m steps at a time | exact: each run of m steps is done again on the way back |
| adjoint | z of each step (g too but with `reverse`) | exact: λ_k = (∂z_{k+1}/∂z_k)ᵀ λ_{k+1}, one Hessian-vector product a step |
| auto | | unrolled where its graph fits `memory_mb`, else adjoint; says which in `MetaGradient.mode` |
| implicit | φ_K alone | exact where φ_K is a minimum of the support loss: −(∂²L_s/∂φ∂outer)ᵀ (∂²L_s/∂φ²)⁻¹ ∂L_q/∂φ |

The adjoint's Hessian-vector products, along γ, the cotangent of g_k, are taken as `product` says (metatrain/meta/curvature.py).

Finn et al. 2017 (arXiv:1703.03400), eq. 1 and §5.2; Griewank and Walther 2000 (Algorithm 799) for checkpoints; Maclaurin et al.
2015 (arXiv:1502.03492) and MixFlow-MG (Kemaev et al. 2025, arXiv:2505.00793) for the adjoint; Rajeswaran et al. 2019
(arXiv:1909.04630) and Lorraine et al. 2020 (arXiv:1911.02590) for the implicit gradient.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from metatrain.inner.inner_loss import seen_from
from metatrain.inner.loop import adapt, move, support_gradient, trajectory
from metatrain.inner.optimizers import Moments, Optimizer
from metatrain.inner.problem import Leaves, Outer, Start, Tasks
from metatrain.meta.curvature import PRODUCTS, ProductName, Reverse
from metatrain.meta.linear_solve import Solution, conjugate_gradient, neumann
from metatrain.meta.named_tensors import add, alive, from_namespace, gradients_of, inner_product, into_namespace

Mode = Literal["first_order", "unrolled", "checkpointed", "adjoint", "implicit", "auto"]


class Differentiation(BaseModel):
    """How the meta-gradient is taken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = "unrolled"
    memory_mb: int = Field(default=2048, ge=1, description="of auto: what the graphs of all inner steps may take together")
    segment: int = Field(default=2, ge=1, description="of checkpointed: inner steps between two checkpoints")
    product: ProductName = Field(default="reverse", description="of adjoint and implicit: how Hessian-vector products are taken")
    solver: Literal["cg", "neumann"] = Field(default="cg", description="of implicit")
    iterations: int = Field(default=10, ge=1, le=1000, description="of implicit: Hessian-vector products of the solver")
    damping: float = Field(default=0.0, ge=0, description="of implicit: added to the Hessian's diagonal")
    neumann_rate: float = Field(default=0.1, gt=0, description="of implicit with neumann: η in Σ_j η (I − ηH)^j")

    @model_validator(mode="after")
    def _product_is_used(self) -> "Differentiation":
        if self.product == "central" and self.mode not in ("adjoint", "implicit"):
            raise ValueError(f'product: "central" is of adjoint and implicit, got mode {self.mode!r}')
        return self

    @property
    def second_derivative(self) -> bool:
        """A second derivative of the support loss is taken."""
        return self.mode != "first_order" and self.product != "central"


def _through_the_loop(how: Differentiation) -> Differentiation:
    if how.mode not in _LOOP:
        raise ValueError(f"mode: expected one of {', '.join(_LOOP)}, got {how.mode!r}")
    return how


def _at_the_minimum(how: Differentiation) -> Differentiation:
    if how.mode != "implicit":
        raise ValueError(f"mode: expected 'implicit', got {how.mode!r}")
    return how


_LOOP = ("unrolled", "checkpointed", "adjoint", "auto")
ThroughTheLoop = Annotated[Differentiation, AfterValidator(_through_the_loop)]
"""Any of the modes that differentiate the steps."""
AtTheMinimum = Annotated[Differentiation, AfterValidator(_at_the_minimum)]
"""The implicit mode."""


@dataclass(frozen=True)
class MetaGradient:
    """Mean query loss and accuracy over the T tasks after the last inner step, the mean support loss before each step, and the
    gradient for every leaf of `Outer.leaves()`. `residual`: of the implicit mode's solver, relative, the worst task's. `mode`: the
    one that was taken."""

    loss: float
    accuracy: float
    support_loss: tuple[float, ...]
    gradients: dict[str, Tensor]
    residual: float | None = None
    mode: Mode = "unrolled"


def meta_gradient(
    tasks: Tasks,
    outer: Outer,
    optimizer: Optimizer,
    how: Differentiation,
    *,
    steps: int | None = None,
    weights: Sequence[float] | None = None,
) -> MetaGradient:
    """The gradient of the mean query loss after the inner loop, or with `weights` (one for φ_0 … φ_K) of their weighted sum (the
    multi-step loss of Antoniou et al. 2019, arXiv:1810.09502, §4).

    A leaf that the loss cannot reach gets a zero gradient (with no inner steps the rates are such leaves). Raises ValueError for a
    mode that these tasks cannot be differentiated in, and NonFinite.
    """
    of = tasks.steps if steps is None else steps
    last_alone = [0.0] * of + [1.0]
    kept = list(last_alone if weights is None else weights)
    if len(kept) != of + 1:
        raise ValueError(f"weights: expected {of + 1}, one for each of φ_0 … φ_{of}, got {len(kept)}")
    if how.second_derivative and tasks.no_second_derivative is not None:
        raise ValueError(f"{how.mode}: {tasks.no_second_derivative}")
    if how.product == "central" and tasks.no_differences is not None:
        raise ValueError(f"{how.mode} with central differences: {tasks.no_differences}")
    if how.mode == "implicit" and kept != last_alone:
        raise ValueError("weights: the implicit gradient is of the last inner step alone")
    return _MODES[how.mode](_Procedure(tasks, outer, optimizer, of, kept, how.mode), how)


@dataclass(frozen=True)
class _Procedure:
    """What is differentiated: the tasks' inner loop from `outer`, judged after the steps that have a weight."""

    tasks: Tasks
    outer: Outer
    optimizer: Optimizer
    steps: int
    weights: Sequence[float]
    mode: Mode

    def judge(self, phi: Leaves, outer: Outer, step: int) -> tuple[Tensor, Tensor]:
        """Mean query loss and accuracy at φ_step."""
        loss, accuracy = self.tasks.query_loss(phi, outer, step, exact=self.mode != "first_order")
        return loss.mean(), accuracy.mean()

    def result(
        self,
        live: Outer,
        of_values: Leaves,
        judged: tuple[Tensor, Tensor],
        support: Sequence[Tensor],
        residual: float | None = None,
    ) -> MetaGradient:
        gradients = {name: g.detach() for name, g in live.gradients(of_values).items()}
        means = tuple(float(loss.mean()) for loss in support)
        loss, score = float(judged[0].detach()), float(judged[1].detach())
        return MetaGradient(loss, score, means, gradients, residual, self.mode)


def _reverse(procedure: _Procedure, how: Differentiation) -> MetaGradient:
    """first_order and unrolled: autograd through whatever the loop kept."""
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
    """The graph of one inner step is built and measured; K of them and the query's, taken for one more, must fit."""
    fits = True
    if procedure.steps:
        live = procedure.outer.detached(live=True)
        start = procedure.tasks.start(live)
        kept = graph_bytes(support_gradient(procedure.tasks, start.phi, live, 0, start, graph=True)[1].values())
        fits = (procedure.steps + 1) * kept <= how.memory_mb * 2**20
    chosen: Mode = "unrolled" if fits else "adjoint"
    return _MODES[chosen](replace(procedure, mode=chosen), how.model_copy(update={"mode": chosen}))


def graph_bytes(results: Iterable[Tensor]) -> int:
    """Bytes that the graph of these tensors keeps for its backward pass, every storage counted once; what stands outside of it
    (parameters of the base model, token ids) left out."""
    waiting = [tensor.grad_fn for tensor in results if tensor.grad_fn is not None]
    seen, storages = set(waiting), dict[int, int]()
    while waiting:
        node: Any = waiting.pop()
        for name in dir(node):
            if name.startswith("_saved_") and isinstance(saved := getattr(node, name), Tensor) and saved.grad_fn is not None:
                storages[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return sum(storages.values())


def _checkpointed(procedure: _Procedure, how: Differentiation) -> MetaGradient:
    """Forward without a graph, keeping every m-th z; then back, the graph of one run of m steps at a time. (torch's own checkpoint
    would do a step again for the gradient inside it, and once more on the way back.)"""
    start, kept, end, losses = _forward(procedure, every=how.segment)
    back = _Back.start(procedure, start, *end)
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
        seen = seen_from(procedure.tasks, start, live)
        for step in range(begin, min(begin + how.segment, procedure.steps)):
            if step > begin and procedure.weights[step]:
                total = total + procedure.weights[step] * procedure.judge(moved, live, step)[0]
            gradients = support_gradient(procedure.tasks, moved, live, step, seen, graph=True)[1]
            moved, after = move(procedure.optimizer, moved, after, gradients, live.rates, step)
        owed = gradients_of(total + inner_product(moved, back.phi) + inner_product(after, back.state), inputs)
        back.phi, back.state = from_namespace("phi", owed), from_namespace("state", owed)
        add(back.found, from_namespace("outer", owed))
        if procedure.weights[begin]:
            back.judge(phi, begin)
    return back.result(judged, losses)


def _adjoint(procedure: _Procedure, how: Differentiation) -> MetaGradient:
    """Forward without a graph, keeping every z; then back, one Hessian-vector product a step."""
    start, visited, end, losses = _forward(procedure, every=1, gradients=how.product != "reverse")
    back = _Back.start(procedure, start, *end)
    judged = back.judge(end[0], procedure.steps)
    for step in reversed(range(procedure.steps)):
        phi, state, gradients = visited.pop()
        back.step(how, phi, state, gradients, step)
        if procedure.weights[step]:
            back.judge(phi, step)
    return back.result(judged, losses)


def _forward(
    procedure: _Procedure, *, every: int, gradients: bool = False
) -> tuple[Start, list[tuple[dict[str, Tensor], Moments, dict[str, Tensor]]], tuple[dict[str, Tensor], Moments], list[Tensor]]:
    """The inner loop without a graph: its start; φ and the optimizer's state before each `every`-th step, with `gradients` the one
    that it takes; both after the last step; and the support losses before each."""
    tasks, optimizer, still = procedure.tasks, procedure.optimizer, procedure.outer.detached()
    kept: list[tuple[dict[str, Tensor], Moments, dict[str, Tensor]]] = []
    losses: list[Tensor] = []
    with torch.no_grad():
        start = tasks.start(still).detached()
        phi = start.phi
        state = optimizer.start(phi)
        for step in range(procedure.steps):
            loss, taken = support_gradient(tasks, phi, still, step, start, graph=False)
            losses.append(loss)
            if step % every == 0:
                kept.append((phi, state, taken if gradients else {}))
            phi, state = move(optimizer, phi, state, taken, still.rates, step)
    return start, kept, (phi, state), losses


@dataclass
class _Back:
    """On the way back: λ of φ and of the optimizer's state, and what the outer values have got so far."""

    procedure: _Procedure
    begun: Start
    phi: dict[str, Tensor]
    state: dict[str, Tensor]
    found: dict[str, Tensor]

    @classmethod
    def start(cls, procedure: _Procedure, begun: Start, phi: Leaves, state: Leaves) -> "_Back":
        return cls(procedure, begun, _zeros(phi), _zeros(state), _zeros(procedure.outer.values()))

    def judge(self, phi: Leaves, step: int) -> tuple[Tensor, Tensor]:
        """Add what the query loss at φ_step gives."""
        return _judge_back(self.procedure, phi, step, self.phi, self.found)

    def step(self, how: Differentiation, phi: Leaves, state: Leaves, gradients: Leaves, step: int) -> None:
        """λ_{k+1} → λ_k, adding to the outer gradient what the step owes to it: of U by autograd on the few leaves it has, of g_k
        by a Hessian-vector product along γ, the cotangent of g_k. `gradients`: g_k, but where the product's own graph has it."""
        outer = self.procedure.outer
        product = PRODUCTS[how.product](self.procedure.tasks, phi, outer, step, self.begun)
        inputs = {
            **into_namespace("phi", alive(phi)),
            **into_namespace("state", alive(state)),
            **into_namespace("g", alive(product.gradient if isinstance(product, Reverse) else gradients)),
            **into_namespace("rates", alive(outer.rates)),
        }
        begin, moments, taken, rates = (from_namespace(name, inputs) for name in ("phi", "state", "g", "rates"))
        moved, after = move(self.procedure.optimizer, begin, moments, taken, rates, step)
        back = gradients_of(inner_product(moved, self.phi) + inner_product(after, self.state), inputs)
        add(self.found, {f"rates.{name}": g for name, g in from_namespace("rates", back).items()})
        curvature, mixed = product.along(from_namespace("g", back), last=True)
        add(self.found, mixed)
        self.phi, self.state = from_namespace("phi", back), from_namespace("state", back)
        add(self.phi, curvature)

    def result(self, judged: tuple[Tensor, Tensor], losses: Sequence[Tensor]) -> MetaGradient:
        """With what φ_0 owes to the outer values."""
        live = self.procedure.outer.detached(live=True)
        begin = self.procedure.tasks.start(live).phi
        add(self.found, gradients_of(inner_product(begin, self.phi), live.values()))
        return self.procedure.result(live, self.found, judged, losses)


def _judge_back(
    procedure: _Procedure, phi: Leaves, step: int, adjoint: dict[str, Tensor], found: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Add what the query loss at φ_step gives to λ and to the outer gradient."""
    live, outer = alive(phi), procedure.outer.detached(live=True)
    judged = procedure.judge(live, outer, step)
    if procedure.weights[step]:
        both = {**into_namespace("phi", live), **into_namespace("outer", outer.values())}
        gradients = gradients_of(procedure.weights[step] * judged[0], both)
        add(adjoint, from_namespace("phi", gradients))
        add(found, from_namespace("outer", gradients))
    return judged[0].detach(), judged[1].detach()


def _implicit(procedure: _Procedure, how: Differentiation) -> MetaGradient:
    """At φ_K, taken for a minimum of the support loss as step number K would see it: (H + damping I) u = ∂L_q/∂φ solved for
    each task, then −(∂²L_s/∂φ∂outer)ᵀ u."""
    tasks = procedure.tasks
    still = procedure.outer.detached()
    end = adapt(tasks, still, procedure.optimizer, steps=procedure.steps)
    found, v = _zeros(still.values()), _zeros(end.phi)
    judged = _judge_back(procedure, end.phi, procedure.steps, v, found)
    product = PRODUCTS[how.product](tasks, end.phi, procedure.outer, procedure.steps, end.start)

    def hessian(u: Leaves) -> dict[str, Tensor]:
        return {name: h + how.damping * u[name] for name, h in product.along(u)[0].items()}

    solution: Solution
    if how.solver == "cg":
        solution = conjugate_gradient(hessian, v, iterations=how.iterations)
    else:
        solution = neumann(hessian, v, iterations=how.iterations, rate=how.neumann_rate)
    add(found, {name: -g for name, g in product.along(solution.x, last=True)[1].items()})
    return procedure.result(still, found, judged, end.losses, solution.residual)


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
