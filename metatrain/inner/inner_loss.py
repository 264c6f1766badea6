"""The loss that inner steps minimise: the support loss plus the proximal term, if there is one.

    L_inner(φ) = L_support(φ) + λ/2 ‖φ − φ_0‖²

The proximal term is that of Rajeswaran et al. 2019 (arXiv:1909.04630), equation 3.
"""

import torch
from torch import Tensor

from metatrain.inner.problem import Leaves, Outer, Start, Tasks


def inner_loss(tasks: Tasks, phi: Leaves, outer: Outer, step: int, start: Start) -> Tensor:
    """Return L_support(φ) + λ/2 ‖φ − φ_0‖² of each task, [T], for step number `step`."""
    loss = start.first(phi, outer) if step == 0 and start.first is not None else tasks.support_loss(phi, outer, step, start)
    if tasks.proximal:
        loss = loss + 0.5 * tasks.proximal * _distance(phi, start.phi)
    return loss


def differentiable_start(tasks: Tasks, start: Start, outer: Outer) -> Start:
    """Return the start as a function of `outer`, for a gradient that reaches `outer` through it.

    Its values equal those of `start`. It is computed again only if the inner loss reads it: with a proximal term, or if the losses
    read shared tensors.
    """
    return tasks.start(outer) if tasks.proximal or start.shared else start


def _distance(phi: Leaves, begin: Leaves) -> Tensor:
    """Return ‖φ − φ_0‖² of each task, [T]."""
    return torch.stack([(leaf - begin[name]).square().flatten(1).sum(1) for name, leaf in phi.items()]).sum(0)
