"""What is done with leaves by name: tensors of φ, of the optimizer's state, of outer values."""

import torch
from torch import Tensor

from metatrain.inner.problem import Leaves


def gradients_of(total: Tensor, of: Leaves, *, keep: bool = False) -> dict[str, Tensor]:
    """d total / d each; zero where it is not reached."""
    if not total.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in of.items()}
    wanted = {name: leaf for name, leaf in of.items() if leaf.requires_grad}
    found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True, retain_graph=keep)
    reached = {name: g for name, g in zip(wanted, found, strict=True) if g is not None}
    return {name: reached[name] if name in reached else torch.zeros_like(leaf) for name, leaf in of.items()}


def inner_product(left: Leaves, right: Leaves) -> Tensor:
    """⟨left, right⟩ over all leaves."""
    products = [(leaf * right[name]).sum() for name, leaf in left.items()]
    return torch.stack(products).sum() if products else torch.zeros(())


def dot(left: Leaves, right: Leaves) -> Tensor:
    """Each task's inner product over all leaves, [T]."""
    return torch.stack([(leaf * right[name]).flatten(1).sum(1) for name, leaf in left.items()]).sum(0)


def length(leaves: Leaves) -> Tensor:
    """Each task's Euclidean norm over all leaves, [T]."""
    return dot(leaves, leaves).sqrt()


def over(per_task: Tensor, leaf: Tensor) -> Tensor:
    """[T] as [T, 1, …], to stand beside a leaf."""
    return per_task.view(-1, *[1] * (leaf.dim() - 1))


def alive(leaves: Leaves) -> dict[str, Tensor]:
    """The same numbers as leaves of a new graph."""
    return {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}


def into_namespace(namespace: str, leaves: Leaves) -> dict[str, Tensor]:
    """Return leaves under names that begin with what they belong to, so that several kinds can stand side by side."""
    return {f"{namespace}:{name}": leaf for name, leaf in leaves.items()}


def from_namespace(namespace: str, leaves: Leaves) -> dict[str, Tensor]:
    """Return the leaves that `into_namespace` put under `namespace`, by their own names."""
    return {name.removeprefix(f"{namespace}:"): leaf for name, leaf in leaves.items() if name.startswith(f"{namespace}:")}


def add(into: dict[str, Tensor], more: Leaves) -> None:
    for name, value in more.items():
        into[name] = into[name] + value
