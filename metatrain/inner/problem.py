"""The interface between meta-learning algorithms and tasks: `Tasks`, `Start` and `Outer`.

To an algorithm, T tasks are pure functions from parameters to losses [T]. The parameters φ that the inner loop moves are named
tensors (leaves) with a leading task axis. No task's loss depends on another task's leaves, so the gradient of the sum of losses
contains every task's own gradient. The parameters that the outer loop moves are shared by all tasks, in one `Outer`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

Leaves = Mapping[str, Tensor]


@dataclass(frozen=True)
class Outer:
    """The parameters that the outer loop moves; all tasks share them.

    `theta`: θ, the start of the inner loop, without a task axis. `rates`: the inner learning rates α of each leaf (named tensor) of
    φ, [S] or [S, *leaf shape]; step k uses entry min(k, S − 1). `scale`: s, the inverse temperature; None if the losses do not use
    one. `base`: parameters of the base model that the outer loop moves too, by their names in the model.

    The outer optimizer moves the tensors of `leaves()`. These are the tensors of `values()`, but with the logarithms of the rates
    and of the scale, so that rates and scale stay positive.
    """

    theta: dict[str, Tensor]
    rates: dict[str, Tensor]
    scale: Tensor | None = None
    base: dict[str, Tensor] = field(default_factory=dict)

    def values(self) -> dict[str, Tensor]:
        """Return all tensors under flat names: `theta.*`, `rates.*`, `base.*`, `scale`."""
        named = {f"theta.{n}": t for n, t in self.theta.items()} | {f"rates.{n}": t for n, t in self.rates.items()}
        named |= {f"base.{n}": t for n, t in self.base.items()}
        return named if self.scale is None else {**named, "scale": self.scale}

    @classmethod
    def from_values(cls, values: Leaves) -> "Outer":
        return cls(_under("theta.", values), _under("rates.", values), values.get("scale"), _under("base.", values))

    def leaves(self) -> dict[str, Tensor]:
        """Return the tensors that the outer optimizer moves: `theta.*`, `log_rates.*`, `base.*`, `log_scale`."""
        return {_leaf(name): t.log() if _is_positive(name) else t for name, t in self.values().items()}

    @classmethod
    def from_leaves(cls, leaves: Leaves) -> "Outer":
        return cls.from_values({n.removeprefix("log_"): t.exp() if n.startswith("log_") else t for n, t in leaves.items()})

    def gradients(self, of_values: Leaves) -> dict[str, Tensor]:
        """Convert gradients with respect to `values()` to gradients with respect to `leaves()`.

        For logarithms, d/d(log a) = a · d/da.
        """
        values = self.values()
        return {_leaf(n): g * values[n] if _is_positive(n) else g for n, g in of_values.items()}

    def on(self, device: torch.device) -> "Outer":
        return Outer.from_values({name: t.to(device) for name, t in self.values().items()})

    def detached(self, *, live: bool = False) -> "Outer":
        """Return the same values, detached from the autograd graph.

        `live`: make the returned tensors require a gradient, as leaves of a new autograd graph.
        """
        return Outer.from_values({name: t.detach().requires_grad_(live) for name, t in self.values().items()})


@dataclass(frozen=True)
class Decision:
    """The decision of a readout about the optional rows of T tasks.

    `used` [T]: True for the tasks that use their optional rows. `evidence` [T]: the number on which it is based; None for
    a task without optional rows.
    """

    used: tuple[bool, ...]
    evidence: tuple[float | None, ...]


@dataclass(frozen=True)
class Start:
    """The start of the inner loop of T tasks: φ_0, and the values that all steps share.

    `phi`: φ_0, named tensors [T, …]; the proximal term measures the distance from it. `steps`: the number of steps of each task.
    `shared`: tensors [T, …] that the support losses read besides φ, computed from the same `outer`. `first`: a function from φ and
    outer to the support loss of step 0, if `Tasks.start` has already run the forward pass at φ_0; otherwise None. `features`:
    those of the support sets at φ_0, [T, M, D] and detached, if they were computed. `tasks`: the tasks with which the loop goes on,
    if `Tasks.start` has decided not to use some rows; None: the same. `decision`: what it has decided.
    """

    phi: dict[str, Tensor]
    steps: tuple[int, ...]
    shared: dict[str, Tensor] = field(default_factory=dict)
    first: Callable[[Leaves, Outer], Tensor] | None = None
    features: Tensor | None = None
    tasks: "Tasks | None" = None
    decision: Decision | None = None

    def detached(self) -> "Start":
        """Return the same values, detached from the autograd graph."""
        phi, shared = ({name: leaf.detach() for name, leaf in leaves.items()} for leaves in (self.phi, self.shared))
        return replace(self, phi=phi, shared=shared)

    def only(self, which: Sequence[int]) -> "Start":
        """Return the start with only the tasks at the indices `which`.

        The result has no `first`, so it can be used only after step 0.
        """
        index = list(which)
        phi, shared = ({name: leaf[index] for name, leaf in leaves.items()} for leaves in (self.phi, self.shared))
        return Start(phi, tuple(self.steps[t] for t in index), shared)


class Tasks(Protocol):
    """The interface of T tasks with their support and query sets, as the inner loop uses it.

    Every method is a pure function of its arguments. `start`, `query_loss` and `support_loss` are differentiable in φ and in every
    tensor of `outer` and of the start that they read. `support_loss` has as many derivatives as the meta-gradient's mode needs.
    """

    @property
    def count(self) -> int:
        """The number of tasks, T."""

    @property
    def steps(self) -> int:
        """The largest planned number of inner steps; `Start.steps` has the actual number of each task."""

    @property
    def no_second_derivative(self) -> str | None:
        """The reason why `support_loss` has no second derivative; None if it has one."""

    @property
    def no_differences(self) -> str | None:
        """The reason why finite differences of gradients cannot be used, such as rounding; None if they can."""

    @property
    def proximal(self) -> float:
        """λ of the term λ/2 ‖φ − φ_0‖² that the inner loop adds to the support loss; 0 for none."""

    def start(self, outer: Outer) -> Start:
        """Compute the start of the inner loop: φ_0, and the values that all steps share."""

    def support_loss(self, phi: Leaves, outer: Outer, step: int, start: Start) -> Tensor:
        """Return the inner objective of step number `step` at φ, [T], without the proximal term.

        `start`: the result of `start(outer)`.
        """

    def query_loss(self, phi: Leaves, outer: Outer, step: int, *, exact: bool = True) -> tuple[Tensor, Tensor]:
        """Return the query loss [T] and a score such as accuracy [T], at φ after `step` inner steps.

        Some readouts take gradient steps of their own here. `exact`: differentiate through these steps; otherwise their gradients
        are treated as constants.
        """


def stack(theta: Leaves, tasks: int) -> dict[str, Tensor]:
    """Return θ expanded to T tasks: [...] → [T, ...], without a copy."""
    return {name: leaf.unsqueeze(0).expand(tasks, *leaf.shape) for name, leaf in theta.items()}


def start_rates(leaves: Iterable[str], rate: float, *, steps: int = 1) -> dict[str, Tensor]:
    """Return initial inner rates that all equal `rate`: a tensor [steps] for each name in `leaves`."""
    return {name: torch.full((steps,), rate) for name in leaves}


def _under(namespace: str, named: Leaves) -> dict[str, Tensor]:
    return {name.removeprefix(namespace): t for name, t in named.items() if name.startswith(namespace)}


def _is_positive(value_name: str) -> bool:
    return value_name == "scale" or value_name.startswith("rates.")


def _leaf(value_name: str) -> str:
    return f"log_{value_name}" if _is_positive(value_name) else value_name
