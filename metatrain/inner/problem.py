"""What every meta-learning algorithm works on: T tasks side by side, as pure losses of parameters.

A task's parameters φ are named leaves with a leading task axis; a loss of T tasks is [T], and no task's loss depends on another's
leaves, so the gradient of the sum is every task's own gradient. What the outer loop moves, and what all tasks share, is one
`Outer`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

Leaves = Mapping[str, Tensor]


@dataclass(frozen=True)
class Outer:
    """What the outer loop moves.

    `theta`: one task's start. `rates`: α of each leaf of φ, [S] or [S, *leaf]: step k takes entry min(k, S − 1). `scale`: s, the
    inverse temperature, where the losses have one. `base`: parameters of the base model that the outer loop moves too, by their
    names; every task sees the same.

    The outer optimizer sees it as `leaves()`, under the names of `values()`, in which rates and scale, being positive, stand as
    their logarithms.
    """

    theta: dict[str, Tensor]
    rates: dict[str, Tensor]
    scale: Tensor | None = None
    base: dict[str, Tensor] = field(default_factory=dict)

    def values(self) -> dict[str, Tensor]:
        """Every tensor under one flat name."""
        named = {f"theta.{n}": t for n, t in self.theta.items()} | {f"rates.{n}": t for n, t in self.rates.items()}
        named |= {f"base.{n}": t for n, t in self.base.items()}
        return named if self.scale is None else {**named, "scale": self.scale}

    @classmethod
    def from_values(cls, values: Leaves) -> "Outer":
        return cls(_under("theta.", values), _under("rates.", values), values.get("scale"), _under("base.", values))

    def leaves(self) -> dict[str, Tensor]:
        """What the outer optimizer moves, under flat names: `theta.*`, `log_rates.*`, `log_scale`."""
        return {_leaf(name): t.log() if _is_positive(name) else t for name, t in self.values().items()}

    @classmethod
    def from_leaves(cls, leaves: Leaves) -> "Outer":
        return cls.from_values({n.removeprefix("log_"): t.exp() if n.startswith("log_") else t for n, t in leaves.items()})

    def gradients(self, of_values: Leaves) -> dict[str, Tensor]:
        """From gradients for `values()` to gradients for `leaves()`: d/d(log a) = a · d/da."""
        values = self.values()
        return {_leaf(n): g * values[n] if _is_positive(n) else g for n, g in of_values.items()}

    def on(self, device: torch.device) -> "Outer":
        return Outer.from_values({name: t.to(device) for name, t in self.values().items()})

    def detached(self, *, live: bool = False) -> "Outer":
        """The same numbers without what made them; `live`: as leaves that a gradient can be taken at."""
        return Outer.from_values({name: t.detach().requires_grad_(live) for name, t in self.values().items()})


@dataclass(frozen=True)
class Start:
    """What `Tasks.start` returns: all that the steps of T tasks share, as a value.

    `phi`: φ_0, leaves [T, …], from which the proximal term measures. `steps`: how many steps each task takes. `shared`: tensors
    [T, …] that the support losses read beside φ, made under the same outer values. `first`, where a first pass over the support
    set was made at φ_0 already: the support loss of step 0 at φ_0, from that pass.
    """

    phi: dict[str, Tensor]
    steps: tuple[int, ...]
    shared: dict[str, Tensor] = field(default_factory=dict)
    first: Callable[[Leaves, Outer], Tensor] | None = None

    def detached(self) -> "Start":
        """The same values, detached from the autograd graph."""
        phi, shared = ({name: leaf.detach() for name, leaf in leaves.items()} for leaves in (self.phi, self.shared))
        return replace(self, phi=phi, shared=shared)

    def only(self, which: Sequence[int]) -> "Start":
        """These of its tasks, after the first step."""
        index = list(which)
        phi, shared = ({name: leaf[index] for name, leaf in leaves.items()} for leaves in (self.phi, self.shared))
        return Start(phi, tuple(self.steps[t] for t in index), shared)


class Tasks(Protocol):
    """T tasks, with their support and query sets.

    Every method is a pure function of its arguments. `start`, `query_loss` and `support_loss` are differentiable in φ and in all
    that they read of `outer` and of the start; `support_loss` as often as the mode of the meta-gradient needs.
    """

    @property
    def count(self) -> int:
        """T"""

    @property
    def steps(self) -> int:
        """The inner steps that are planned for these tasks, the most of them. `Start.steps` has those that each one takes."""

    @property
    def no_second_derivative(self) -> str | None:
        """Why `support_loss` has no second derivative; None if it has one."""

    @property
    def no_differences(self) -> str | None:
        """Why differences of gradients mean nothing; None if they mean something."""

    @property
    def proximal(self) -> float:
        """λ of the term λ/2 ‖φ − φ_0‖² that the inner loop adds to the support loss; 0 for none."""

    def start(self, outer: Outer) -> Start:
        """φ_0, and what the steps share."""

    def support_loss(self, phi: Leaves, outer: Outer, step: int, start: Start) -> Tensor:
        """The inner objective of step number `step` at φ, [T], without the proximal term. `start`: as `start(outer)` gives it."""

    def query_loss(self, phi: Leaves, outer: Outer, step: int, *, exact: bool = True) -> tuple[Tensor, Tensor]:
        """What the outer loop judges φ by after `step` inner steps: loss [T], and accuracy (or another score) [T]. `exact`:
        gradient steps that judging takes itself are differentiated too."""


def stack(theta: Leaves, tasks: int) -> dict[str, Tensor]:
    """One start seen by T tasks: [...] → [T, ...] without a copy."""
    return {name: leaf.unsqueeze(0).expand(tasks, *leaf.shape) for name, leaf in theta.items()}


def start_rates(leaves: Iterable[str], rate: float, *, steps: int = 1) -> dict[str, Tensor]:
    """The same inner rate for every leaf and each of `steps` steps."""
    return {name: torch.full((steps,), rate) for name in leaves}


def _under(namespace: str, named: Leaves) -> dict[str, Tensor]:
    return {name.removeprefix(namespace): t for name, t in named.items() if name.startswith(namespace)}


def _is_positive(value_name: str) -> bool:
    return value_name == "scale" or value_name.startswith("rates.")


def _leaf(value_name: str) -> str:
    return f"log_{value_name}" if _is_positive(value_name) else value_name
