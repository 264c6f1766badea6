"""A u = v for T symmetric matrices side by side, each known by its products alone.

    conjugate_gradient   exact after as many iterations as A has different eigenvalues, for A positive definite
    neumann              u = η Σ_{j<n} (I − ηA)^j v, for 0 < ηA < 2

Both keep the T tasks apart: every inner product and step length is a task's own. Hestenes and Stiefel 1952; Lorraine et al. 2020
(arXiv:1911.02590), alg. 3.
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
    """`x`, leaves [T, …], and the worst task's ‖v − A x‖ / ‖v‖."""

    x: dict[str, Tensor]
    residual: float


def conjugate_gradient(product: MatrixProduct, v: Leaves, *, iterations: int, tolerance: float = 1e-10) -> Solution:
    """A task stops for good at a relative residual of `tolerance`, and where it meets a direction of no positive curvature: A is
    then not positive definite. Every task's best x is kept, so no residual is above that of x = 0, which is 1."""
    x = best = {name: torch.zeros_like(leaf) for name, leaf in v.items()}
    residual, direction = dict(v), dict(v)
    norm = least = begin = dot(residual, residual)
    going = norm > 0
    for _ in range(iterations):
        applied = product(direction)
        curvature = dot(direction, applied)
        going = going & (norm > tolerance**2 * begin) & (curvature > 0)
        if not going.any():
            break
        length = torch.where(going, norm / curvature.where(going, torch.ones_like(norm)), 0.0)
        x = _plus(x, direction, length)
        residual = _plus(residual, applied, -length)
        after = dot(residual, residual)
        better = after < least
        best, least = _where(better, x, best), torch.where(better, after, least)
        direction = _plus(residual, direction, torch.where(going, after / norm.where(going, torch.ones_like(norm)), 0.0))
        norm = after
    return Solution(best, _worst(least, begin))


def neumann(product: MatrixProduct, v: Leaves, *, iterations: int, rate: float) -> Solution:
    """`iterations` terms of the series, each one product."""
    term, total = dict(v), dict(v)
    for _ in range(iterations - 1):
        applied = product(term)
        term = {name: leaf - rate * applied[name] for name, leaf in term.items()}
        total = {name: leaf + term[name] for name, leaf in total.items()}
    x = {name: rate * leaf for name, leaf in total.items()}
    applied = product(x)
    left = {name: leaf - applied[name] for name, leaf in v.items()}
    return Solution(x, _worst(dot(left, left), dot(v, v)))


def _plus(leaves: Leaves, more: Leaves, factor: Tensor) -> dict[str, Tensor]:
    return {name: leaf + over(factor, leaf) * more[name] for name, leaf in leaves.items()}


def _where(chosen: Tensor, leaves: Leaves, others: Leaves) -> dict[str, Tensor]:
    """For each task, by `chosen` [T]."""
    return {name: torch.where(over(chosen, leaf), leaf, others[name]) for name, leaf in leaves.items()}


def _worst(left: Tensor, begin: Tensor) -> float:
    return float((left / begin.clamp(min=torch.finfo(begin.dtype).tiny)).max().sqrt())
