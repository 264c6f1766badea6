"""Operations on mappings from names to tensors: φ, the optimizer's state, outer values."""

import torch
from torch import Tensor

from metatrain.inner.problem import Leaves


def gradients_of(total: Tensor, of: Leaves, *, keep: bool = False) -> dict[str, Tensor]:
    """Return the gradient of `total` for each tensor of `of`; zeros where `total` does not depend on it.

    `keep`: keep the graph for another call.
    """
    if not total.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in of.items()}
    live = {name: leaf for name, leaf in of.items() if leaf.requires_grad}
    gradients = torch.autograd.grad(total, list(live.values()), allow_unused=True, retain_graph=keep)
    reached = {name: g for name, g in zip(live, gradients, strict=True) if g is not None}
    return {name: reached[name] if name in reached else torch.zeros_like(leaf) for name, leaf in of.items()}


def inner_product(left: Leaves, right: Leaves) -> Tensor:
    """Return the inner product ⟨left, right⟩ over all leaves and tasks, a scalar."""
    products = [(leaf * right[name]).sum() for name, leaf in left.items()]
    return torch.stack(products).sum() if products else torch.zeros(())


def dot(left: Leaves, right: Leaves) -> Tensor:
    """Return each task's inner product over all leaves, [T]."""
    return torch.stack([(leaf * right[name]).flatten(1).sum(1) for name, leaf in left.items()]).sum(0)


def length(leaves: Leaves) -> Tensor:
    """Return each task's Euclidean norm over all leaves, [T]."""
    return dot(leaves, leaves).sqrt()


def over(per_task: Tensor, leaf: Tensor) -> Tensor:
    """Reshape `per_task` from [T] to [T, 1, …], so that it broadcasts with `leaf` [T, …]."""
    return per_task.view(-1, *[1] * (leaf.dim() - 1))


def alive(leaves: Leaves) -> dict[str, Tensor]:
    """Return the same values, detached and requiring a gradient, as leaves of a new autograd graph."""
    return {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}


def into_namespace(namespace: str, leaves: Leaves) -> dict[str, Tensor]:
    """Prefix the names with `namespace:`, so that several groups of tensors fit into one mapping."""
    return {f"{namespace}:{name}": leaf for name, leaf in leaves.items()}


def from_namespace(namespace: str, leaves: Leaves) -> dict[str, Tensor]:
    """Return the tensors of `namespace` under their original names: the inverse of `into_namespace`."""
    return {name.removeprefix(f"{namespace}:"): leaf for name, leaf in leaves.items() if name.startswith(f"{namespace}:")}


def add(into: dict[str, Tensor], more: Leaves) -> None:
    for name, value in more.items():
        into[name] = into[name] + value
