"""dL(query)/d(outer): the gradient that the outer loop follows, and the ways to take it.

    z_0 = start(outer),  z_{k+1} = U( z_k, g_k(φ_k, outer), α_k ),  L = mean_t L_query,t( φ_K, outer )     z = (φ, optimizer)

| mode | keeps | gives |
|---|---|---|
| first_order | nothing of the steps | the g_k taken for constants (FOMAML): all else, the rates' gradient included, is kept |
| unrolled | the graph of every step | exact, by reverse mode through the loop |
| checkpointed | z at every m-th step, the graph of m steps at a time | exact: each run of m steps is done again on the way back |
| adjoint | z of each step | exact: λ_k = (∂z_{k+1}/∂z_k)ᵀ λ_{k+1}, one Hessian-vector product a step |
| auto | | unrolled where its graph fits `memory_mb`, else adjoint; says which in `MetaGradient.mode` |
| implicit | φ_K alone | exact where φ_K is a minimum of the support loss: −(∂²L_s/∂φ∂outer)ᵀ (∂²L_s/∂φ²)⁻¹ ∂L_q/∂φ |

The adjoint's Hessian-vector products are of the support gradient along γ, the cotangent of g_k: `reverse` over reverse (d⟨g, γ⟩),
`forward` over reverse (dual numbers), or `central` differences of the gradient, which need first derivatives alone and are not
exact.

Finn et al. 2017 (arXiv:1703.03400), eq. 1 and §5.2; Griewank and Walther 2000 (Algorithm 799) for checkpoints; Maclaurin et al.
2015 (arXiv:1502.03492) and MixFlow-MG (Kemaev et al. 2025, arXiv:2505.00793) for the adjoint; Rajeswaran et al. 2019
(arXiv:1909.04630) and Lorraine et al. 2020 (arXiv:1911.02590) for the implicit gradient.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from metatrain.inner import adapt, move, support_gradient, trajectory
from metatrain.linear_solve import Solution, conjugate_gradient, neumann
from metatrain.optimizers import Optimizer, State
from metatrain.problem import Leaves, Outer, Tasks

Mode = Literal["first_order", "unrolled", "checkpointed", "adjoint", "implicit", "auto"]
Product = Literal["reverse", "forward", "central"]


class Differentiation(BaseModel):
    """How the meta-gradient is taken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Mode = "unrolled"
    memory_mb: int = Field(default=2048, ge=1, description="of auto: what the graphs of all inner steps may take together")
    segment: int = Field(default=2, ge=1, description="of checkpointed: inner steps between two checkpoints")
    product: Product = Field(default="reverse", description="of adjoint and implicit: how Hessian-vector products are taken")
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
    def twice(self) -> bool:
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
    if how.twice and tasks.twice is not None:
        raise ValueError(f"{how.mode}: {tasks.twice}")
    if how.product == "central" and tasks.coarse is not None:
        raise ValueError(f"{how.mode} with central differences: {tasks.coarse}")
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
    return procedure.result(live, _gradients(total, live.values()), judged, point.losses)


def _auto(procedure: _Procedure, how: Differentiation) -> MetaGradient:
    """The graph of one inner step is built and measured; K of them and the query's, taken for one more, must fit."""
    fits = True
    if procedure.steps:
        live = procedure.outer.detached(live=True)
        kept = graph_bytes(support_gradient(procedure.tasks, procedure.tasks.start(live), live, 0, graph=True)[1].values())
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
    """Each run of m steps is a function of tensors that autograd forgets and does again on the way back."""
    tasks, optimizer, of = procedure.tasks, procedure.optimizer, procedure.steps
    live = procedure.outer.detached(live=True)
    phi = tasks.start(live)
    state = optimizer.start(phi)
    judged = procedure.judge(phi, live, 0) if procedure.weights[0] or not of else (torch.zeros(()), torch.zeros(()))
    total = procedure.weights[0] * judged[0]
    losses: list[Tensor] = []
    for begin in range(0, of, how.segment):
        run = partial(_run, procedure, live, range(begin, min(begin + how.segment, of)))
        phi, state, own, judged, seen = checkpoint(run, phi, state, use_reentrant=False, determinism_check="none")
        total, losses = total + own, losses + seen
    return procedure.result(live, _gradients(total, live.values()), judged, losses)


def _run(
    procedure: _Procedure, live: Outer, steps: range, phi: dict[str, Tensor], state: State
) -> tuple[dict[str, Tensor], State, Tensor, tuple[Tensor, Tensor], list[Tensor]]:
    """Some inner steps: φ, the optimizer's state, the weighted query losses on the way, the last of them with its accuracy, and the
    support losses."""
    total, judged, losses = torch.zeros(()), (torch.zeros(()), torch.zeros(())), []
    for step in steps:
        loss, gradients = support_gradient(procedure.tasks, phi, live, step, graph=True)
        phi, state = move(procedure.optimizer, phi, state, gradients, live.rates, step)
        losses.append(loss)
        if procedure.weights[step + 1] or step + 1 == procedure.steps:
            judged = procedure.judge(phi, live, step + 1)
            total = total + procedure.weights[step + 1] * judged[0]
    return phi, state, total, judged, losses


def _adjoint(procedure: _Procedure, how: Differentiation) -> MetaGradient:
    """Forward without a graph, keeping z_k; then back, one step's graph at a time."""
    tasks, optimizer = procedure.tasks, procedure.optimizer
    still = procedure.outer.detached()
    visited: list[tuple[dict[str, Tensor], State]] = []
    losses: list[Tensor] = []
    with torch.no_grad():
        phi = {name: leaf.detach() for name, leaf in tasks.start(still).items()}
        state = optimizer.start(phi)
        for step in range(procedure.steps):
            visited.append((phi, state))
            loss, gradients = support_gradient(tasks, phi, still, step, graph=False)
            losses.append(loss)
            phi, state = move(optimizer, phi, state, gradients, still.rates, step)
    found = {name: torch.zeros_like(value) for name, value in still.values().items()}
    adjoint = {name: torch.zeros_like(leaf) for name, leaf in phi.items()}
    adjoint_state = {name: torch.zeros_like(moment) for name, moment in state.items()}
    judged = _judge_back(procedure, phi, procedure.steps, adjoint, found)
    for step in reversed(range(procedure.steps)):
        phi, state = visited.pop()
        adjoint, adjoint_state = _step_back(procedure, how, phi, state, step, adjoint, adjoint_state, found)
        if procedure.weights[step]:
            _judge_back(procedure, phi, step, adjoint, found)
    live = procedure.outer.detached(live=True)
    begin = tasks.start(live)
    _add(found, _gradients(_inner(begin, adjoint), live.values()))
    return procedure.result(live, found, judged, losses)


def _judge_back(
    procedure: _Procedure, phi: Leaves, step: int, adjoint: dict[str, Tensor], found: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Add what the query loss at φ_step gives to λ and to the outer gradient."""
    live, outer = _live(phi), procedure.outer.detached(live=True)
    judged = procedure.judge(live, outer, step)
    if procedure.weights[step]:
        both = {**_named("phi", live), **_named("outer", outer.values())}
        gradients = _gradients(procedure.weights[step] * judged[0], both)
        _add(adjoint, _part("phi", gradients))
        _add(found, _part("outer", gradients))
    return judged[0].detach(), judged[1].detach()


def _step_back(
    procedure: _Procedure,
    how: Differentiation,
    phi: Leaves,
    state: Leaves,
    step: int,
    adjoint: Leaves,
    adjoint_state: Leaves,
    found: dict[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """λ_{k+1} → λ_k, adding to the outer gradient what the step owes to it: of U by autograd on the few leaves it has, of g_k by a
    Hessian-vector product along γ, the cotangent of g_k."""
    product = _PRODUCTS[how.product](procedure.tasks, phi, procedure.outer, step)
    inputs = {
        **_named("phi", _live(phi)),
        **_named("state", _live(state)),
        **_named("g", _live(product.gradient)),
        **_named("rates", _live(procedure.outer.rates)),
    }
    moved, after = move(
        procedure.optimizer, _part("phi", inputs), _part("state", inputs), _part("g", inputs), _part("rates", inputs), step
    )
    back = _gradients(_inner(moved, adjoint) + _inner(after, adjoint_state), inputs)
    _add(found, {f"rates.{name}": g for name, g in _part("rates", back).items()})
    curvature, mixed = product.along(_part("g", back))
    _add(found, mixed)
    before = _part("phi", back)
    _add(before, curvature)
    return before, _part("state", back)


def _implicit(procedure: _Procedure, how: Differentiation) -> MetaGradient:
    """At φ_K, taken for a minimum of the support loss as step number K would see it: (H + damping I) u = ∂L_q/∂φ solved for
    each task, then −(∂²L_s/∂φ∂outer)ᵀ u."""
    tasks = procedure.tasks
    still = procedure.outer.detached()
    end = adapt(tasks, still, procedure.optimizer, steps=procedure.steps)
    found = {name: torch.zeros_like(value) for name, value in still.values().items()}
    v = {name: torch.zeros_like(leaf) for name, leaf in end.phi.items()}
    judged = _judge_back(procedure, end.phi, procedure.steps, v, found)
    product = _PRODUCTS[how.product](tasks, end.phi, procedure.outer, procedure.steps)

    def hessian(u: Leaves) -> dict[str, Tensor]:
        return {name: h + how.damping * u[name] for name, h in product.along(u)[0].items()}

    solution: Solution
    if how.solver == "cg":
        solution = conjugate_gradient(hessian, v, iterations=how.iterations)
    else:
        solution = neumann(hessian, v, iterations=how.iterations, rate=how.neumann_rate)
    _add(found, {name: -g for name, g in product.along(solution.x)[1].items()})
    return procedure.result(still, found, judged, end.losses, solution.residual)


_MODES: dict[Mode, Callable[[_Procedure, Differentiation], MetaGradient]] = {
    "first_order": _reverse,
    "unrolled": _reverse,
    "auto": _auto,
    "checkpointed": _checkpointed,
    "adjoint": _adjoint,
    "implicit": _implicit,
}


class _Reverse:
    """d⟨g, γ⟩/dφ by reverse mode over the graph of g, which is kept for several γ."""

    def __init__(self, tasks: Tasks, phi: Leaves, outer: Outer, step: int) -> None:
        self.phi, self.outer = _live(phi), outer.detached(live=True)
        _, self.graph = support_gradient(tasks, self.phi, self.outer, step, graph=True)
        self.gradient = {name: g.detach() for name, g in self.graph.items()}

    def along(self, gamma: Leaves) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(∂²L/∂φ²) γ, and (∂²L/∂φ∂outer)ᵀ γ by the names of `Outer.values()`."""
        both = {**_named("phi", self.phi), **_named("outer", self.outer.values())}
        gradients = _gradients(_inner(self.graph, gamma), both, keep=True)
        return _part("phi", gradients), _part("outer", gradients)


class _Forward:
    """The tangent of the gradient for φ and outer when φ moves along γ: dual numbers through one backward pass."""

    def __init__(self, tasks: Tasks, phi: Leaves, outer: Outer, step: int) -> None:
        self.tasks, self.phi, self.outer, self.step = tasks, phi, outer, step
        self.gradient = support_gradient(tasks, phi, outer.detached(), step, graph=False)[1]

    def along(self, gamma: Leaves) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        outer = self.outer.detached(live=True)
        with forward_ad.dual_level():
            dual = {n: _dual(leaf.detach().contiguous().requires_grad_(), gamma[n].contiguous()) for n, leaf in self.phi.items()}
            gradients = _both_gradients(self.tasks, dual, outer, self.step)
            tangents = {}
            for name, g in gradients.items():
                tangent = _tangent(g)
                tangents[name] = torch.zeros_like(g) if tangent is None else tangent.detach()
        return _part("phi", tangents), _part("outer", tangents)


class _Central:
    """(∇L(φ + εγ) − ∇L(φ − εγ)) / 2ε, ε for each task so that εγ is √(rounding unit) times as long as φ: in float32, where an
    encoder's third derivative is large and rounding small, better than the usual cube root (7e-5 against 2e-2 on MiniLM)."""

    def __init__(self, tasks: Tasks, phi: Leaves, outer: Outer, step: int) -> None:
        self.tasks, self.phi, self.outer, self.step = tasks, phi, outer, step
        self.gradient = support_gradient(tasks, phi, outer.detached(), step, graph=False)[1]

    def along(self, gamma: Leaves) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        ends = []
        epsilon = _length(self.phi).clamp(min=1.0) * torch.finfo(next(iter(gamma.values())).dtype).eps ** 0.5
        epsilon = epsilon / _length(gamma).clamp(min=1e-30)
        for sign in (1, -1):
            moved = {n: (leaf + sign * _over(epsilon, leaf) * gamma[n]).detach() for n, leaf in self.phi.items()}
            gradients = _both_gradients(
                self.tasks, _live(moved), self.outer.detached(live=True), self.step, weights=1 / (2 * epsilon)
            )
            ends.append({n: g.detach() for n, g in gradients.items()})
        difference = {n: plus - ends[1][n] for n, plus in ends[0].items()}
        return _part("phi", difference), _part("outer", difference)


_PRODUCTS: dict[Product, Callable[[Tasks, Leaves, Outer, int], "_Reverse | _Forward | _Central"]] = {
    "reverse": _Reverse,
    "forward": _Forward,
    "central": _Central,
}


def _dual(primal: Tensor, tangent: Tensor) -> Tensor:
    return cast(Tensor, forward_ad.make_dual(primal, tangent))  # type: ignore[no-untyped-call]


def _tangent(dual: Tensor) -> Tensor | None:
    return cast(Tensor | None, forward_ad.unpack_dual(dual).tangent)  # type: ignore[no-untyped-call]


def _both_gradients(tasks: Tasks, phi: Leaves, outer: Outer, step: int, weights: Tensor | None = None) -> dict[str, Tensor]:
    """Of the support losses' sum, or weighted sum, for φ and for the outer values."""
    with torch.enable_grad():
        loss = tasks.support_loss(phi, outer, step)
        total = loss.sum() if weights is None else (weights * loss).sum()
        return _gradients(total, {**_named("phi", phi), **_named("outer", outer.values())})


def _gradients(total: Tensor, of: Leaves, *, keep: bool = False) -> dict[str, Tensor]:
    """d total / d each; zero where it is not reached."""
    if not total.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in of.items()}
    wanted = {name: leaf for name, leaf in of.items() if leaf.requires_grad}
    found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True, retain_graph=keep)
    reached = {name: g for name, g in zip(wanted, found, strict=True) if g is not None}
    return {name: reached[name] if name in reached else torch.zeros_like(leaf) for name, leaf in of.items()}


def _inner(left: Leaves, right: Leaves) -> Tensor:
    """⟨left, right⟩ over all leaves."""
    products = [(leaf * right[name]).sum() for name, leaf in left.items()]
    return torch.stack(products).sum() if products else torch.zeros(())


def _length(leaves: Leaves) -> Tensor:
    """Each task's Euclidean norm over all leaves, [T]."""
    return torch.stack([leaf.flatten(1).square().sum(1) for leaf in leaves.values()]).sum(0).sqrt()


def _over(per_task: Tensor, leaf: Tensor) -> Tensor:
    return per_task.view(-1, *[1] * (leaf.dim() - 1))


def _live(leaves: Leaves) -> dict[str, Tensor]:
    return {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}


def _named(prefix: str, leaves: Leaves) -> dict[str, Tensor]:
    return {f"{prefix}:{name}": leaf for name, leaf in leaves.items()}


def _part(prefix: str, leaves: Leaves) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}:"): leaf for name, leaf in leaves.items() if name.startswith(f"{prefix}:")}


def _add(into: dict[str, Tensor], more: Leaves) -> None:
    for name, value in more.items():
        into[name] = into[name] + value
