"""Solve A x = v for T symmetric matrices A in one batch, using only products with A.

    conjugate_gradient   exact after as many iterations as A has different eigenvalues, for A positive definite
    neumann              x = η Σ_{j<n} (I − ηA)^j v, for 0 < ηA < 2

The T systems, one per task, do not influence each other: every inner product and step length is computed per task. Hestenes
and Stiefel 1952; Lorraine et al. 2020 (arXiv:1911.02590), alg. 3.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metatrain.inner.problem import Leaves
from metatrain.meta.named_tensors import dot, over

MatrixProduct = Callable[[Leaves], dict[str, Tensor]]


@dataclass(frozen=True)
class Solution:
    """An approximate solution of A x = v for T tasks.

    `x`: named tensors [T, …]. `residual`: the relative residual ‖v − A x‖ / ‖v‖ of the task where it is largest.
    """

    x: dict[str, Tensor]
    residual: float


def conjugate_gradient(product: MatrixProduct, v: Leaves, *, iterations: int, tolerance: float = 1e-10) -> Solution:
    """Solve A x = v by conjugate gradient, for A positive definite.

    `product`: the function x ↦ A x. A task stops when its relative residual reaches `tolerance`. It also stops at a search
    direction without positive curvature, because A is then not positive definite. The result contains, for each task, the x with
    the smallest residual. The first x is 0, whose relative residual is 1, so no residual in the result exceeds 1.
    """
    x = best = {name: torch.zeros_like(leaf) for name, leaf in v.items()}
    residual, direction = dict(v), dict(v)
    norm = smallest = initial = dot(residual, residual)
    active = norm > 0
    for _ in range(iterations):
        applied = product(direction)
        curvature = dot(direction, applied)
        active = active & (norm > tolerance**2 * initial) & (curvature > 0)
        if not active.any():
            break
        length = torch.where(active, norm / curvature.where(active, torch.ones_like(norm)), 0.0)
        x = _plus(x, direction, length)
        residual = _plus(residual, applied, -length)
        new_norm = dot(residual, residual)
        better = new_norm < smallest
        best, smallest = _where(better, x, best), torch.where(better, new_norm, smallest)
        direction = _plus(residual, direction, torch.where(active, new_norm / norm.where(active, torch.ones_like(norm)), 0.0))
        norm = new_norm
    return Solution(best, _largest_residual(smallest, initial))


def neumann(product: MatrixProduct, v: Leaves, *, iterations: int, rate: float) -> Solution:
    """Solve A x = v approximately by a Neumann series, x = η Σ_{j < n} (I − ηA)^j v.

    n is `iterations` and η is `rate`. The series converges for 0 < ηA < 2. Each term costs one product with A, which is computed by
    `product`.
    """
    term, total = dict(v), dict(v)
    for _ in range(iterations - 1):
        applied = product(term)
        term = {name: leaf - rate * applied[name] for name, leaf in term.items()}
        total = {name: leaf + term[name] for name, leaf in total.items()}
    x = {name: rate * leaf for name, leaf in total.items()}
    applied = product(x)
    residual = {name: leaf - applied[name] for name, leaf in v.items()}
    return Solution(x, _largest_residual(dot(residual, residual), dot(v, v)))


def _plus(leaves: Leaves, more: Leaves, factor: Tensor) -> dict[str, Tensor]:
    return {name: leaf + over(factor, leaf) * more[name] for name, leaf in leaves.items()}


def _where(chosen: Tensor, leaves: Leaves, others: Leaves) -> dict[str, Tensor]:
    """Select per task, like `torch.where`: `leaves` where `chosen` [T] is True, `others` elsewhere."""
    return {name: torch.where(over(chosen, leaf), leaf, others[name]) for name, leaf in leaves.items()}


def _largest_residual(squared: Tensor, initial: Tensor) -> float:
    return float((squared / initial.clamp(min=torch.finfo(initial.dtype).tiny)).max().sqrt())
