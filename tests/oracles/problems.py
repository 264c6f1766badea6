"""Small tasks in float64 for tests of meta-gradients.

They are quadratic losses with closed forms, a small net, and deltas on a tiny encoder.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metatrain.deltas import DeltaKind
from metatrain.inner.config import InnerConfig
from metatrain.inner.encoded import Encoded
from metatrain.inner.nets import Examples, NetTasks, classify, parameters
from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Leaves, Outer, Start, Tasks, stack, start_rates
from metatrain.inner.supervised import Supervised
from metatrain.models.base import Base
from metatrain.readouts.classes import ClassReadout
from metatrain.readouts.heads import HEAD_LEAVES
from tests.tiny import tasks


@dataclass(frozen=True)
class Quadratic:
    """T tasks with quadratic losses. Their only parameter leaf is a vector φ of n numbers.

    L_support,t = ½ (φ − c_t)ᵀ A_t (φ − c_t) and L_query,t = ½ ‖φ − d_t‖².
    """

    matrix: Tensor
    center: Tensor
    target: Tensor
    steps: int
    no_second_derivative: str | None = None
    no_differences: str | None = None
    proximal: float = 0.0

    @property
    def count(self) -> int:
        return self.center.shape[0]

    def start(self, outer: Outer) -> Start:
        phi = {name: leaf.view_as(leaf) for name, leaf in stack(outer.theta, self.count).items()}
        return Start(phi, (self.steps,) * self.count)

    def support_loss(self, phi: Leaves, outer: Outer, step: int, start: Start) -> Tensor:
        difference = phi["x"] - self.center
        return 0.5 * torch.einsum("ti,tij,tj->t", difference, self.matrix, difference)

    def query_loss(self, phi: Leaves, outer: Outer, step: int, *, exact: bool = True) -> tuple[Tensor, Tensor]:
        error = 0.5 * (phi["x"] - self.target).square().sum(1)
        return error, -error


def quadratic(*, tasks: int = 3, size: int = 4, steps: int = 3, seed: int = 0) -> tuple[Quadratic, Outer]:
    """Return quadratic tasks and an initialization for them.

    The eigenvalues of the matrices A_t are between ½ and about 3.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    roots = normal(tasks, size, size) / size**0.5
    matrix = roots @ roots.transpose(1, 2) + 0.5 * torch.eye(size, dtype=torch.float64)
    outer = Outer({"x": normal(size)}, {"x": torch.tensor([0.2], dtype=torch.float64)})
    return Quadratic(matrix, normal(tasks, size), normal(tasks, size), steps), outer


def net_tasks(*, count: int = 2, steps: int = 2, moved: tuple[str, ...] = (), seed: int = 0) -> tuple[NetTasks, Outer]:
    """Return 3-way tasks on a two-layer net, and an initialization for them."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()

    def examples(rows: int) -> Examples:
        return Examples(torch.randn(count, rows, 5, dtype=torch.float64), torch.arange(rows).remainder(3).expand(count, rows))

    tasks = NetTasks(net, examples(6), examples(9), classify, steps=steps, moved=moved)
    theta = parameters(net)
    return tasks, Outer(theta, {name: rate.double() for name, rate in start_rates(theta, 0.1).items()})


def text_outer(kind: DeltaKind, *, rate: float = 0.05, scale: float = 8.0, steps: int = 1, spread: float = 0.2) -> Outer:
    """Return an initialization in which no leaf is zero and the rates differ from step to step."""
    theta = kind.initial(torch.Generator().manual_seed(0), b_std=spread)
    rates = start_rates(theta, rate, steps=steps) | start_rates(HEAD_LEAVES, 2 * rate, steps=steps)
    by_step = {name: r * torch.linspace(1.0, 0.7, steps) for name, r in rates.items()}
    return Outer.from_values({n: t.double() for n, t in Outer(theta, by_step, torch.tensor(scale)).values().items()})


def text_tasks(
    base: Base,
    kind: DeltaKind,
    config: InnerConfig,
    *,
    count: int = 2,
    first: int = 0,
    anchor: float = 0.0,
    rows_at_once: int | None = None,
) -> Supervised:
    """Return `count` text tasks from `tests.tiny.tasks`, beginning with task number `first`."""
    encoded = Encoded(base)
    support = encoded.support(tasks(first + count)[first:])
    query = encoded.query(tasks(first + count + 3, shots=3)[first + 3 :])
    return Supervised(base, kind, ClassReadout, config, support, query, anchor=anchor, rows_at_once=rows_at_once)


def smooth(name: str) -> Optimizer:
    """Return an inner optimizer with a large ε, so that finite differences are accurate.

    With a small ε, Adam's first step is nearly sign(g), whose curvature is too sharp for finite differences.
    """
    return Optimizer(name, 0.9, 0.999, 1e-2)  # type: ignore[arg-type]


def central_difference(objective: "Objective", outer: Outer, name: str, toward: Tensor, *, step: float = 1e-6) -> float:
    """Return the central difference of `objective` along the direction `toward` in the outer leaf `name`."""
    ends = []
    for sign in (1, -1):
        leaves = outer.leaves()
        leaves[name] = leaves[name] + sign * step * toward
        ends.append(objective(Outer.from_leaves(leaves)))
    return (ends[0] - ends[1]) / (2 * step)


class Objective:
    """The mean query loss after the inner loop, as a plain function of the outer leaves.

    `weights` are the weights of the query losses at φ_0 … φ_K. If None, only the loss at φ_K is used. Autograd is used only for the
    inner steps.
    """

    def __init__(self, tasks: Tasks, optimizer: Optimizer, weights: list[float] | None = None) -> None:
        self.tasks, self.optimizer, self.weights = tasks, optimizer, weights

    def __call__(self, outer: Outer) -> float:
        from metatrain.inner.loop import trajectory

        outer, total = outer.detached(), 0.0
        weights = self.weights or [0.0] * self.tasks.steps + [1.0]
        for point in trajectory(self.tasks, outer, self.optimizer):
            if weights[point.step]:
                loss = self.tasks.query_loss({n: leaf.detach() for n, leaf in point.phi.items()}, outer, point.step)[0]
                total += weights[point.step] * float(loss.detach().mean())
        return total


def directions(outer: Outer, *, like: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    """Return a random direction for each outer leaf whose name contains one of the strings in `like`."""
    generator = torch.Generator().manual_seed(1)
    names = [name for name in outer.leaves() if any(part in name for part in like)]
    return {name: torch.randn(outer.leaves()[name].shape, generator=generator, dtype=torch.float64) for name in names}
