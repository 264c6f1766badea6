"""The loss that inner steps minimise: the support loss plus the proximal term, if there is one.

    L_inner(φ) = L_support(φ) + λ/2 ‖φ − φ_0‖²

The proximal term is that of Rajeswaran et al. 2019 (arXiv:1909.04630), equation 3.
"""

import torch
from torch import Tensor

from metatrain.inner.problem import Leaves, Outer, Start, Tasks


def inner_loss(tasks: Tasks, phi: Leaves, outer: Outer, step: int, start: Start) -> Tensor:
    """Return L_support(φ) + λ/2 ‖φ − φ_0‖² of each task, [T], for step number `step`.

    If `start.first` is set, step 0 takes the support loss from it, which reuses the forward pass of the start.
    """
    loss = start.first(phi, outer) if step == 0 and start.first is not None else tasks.support_loss(phi, outer, step, start)
    if tasks.proximal:
        loss = loss + 0.5 * tasks.proximal * _distance(phi, start.phi)
    return loss


def differentiable_start(tasks: Tasks, start: Start, outer: Outer) -> Start:
    """Return `start` connected to `outer` in the autograd graph, if the inner loss depends on the start.

    The inner loss depends on the start if there is a proximal term, or if the losses read `start.shared`. The start is then
    computed again from `outer`, with the same values. Otherwise `start` itself is returned.
    """
    return tasks.start(outer) if tasks.proximal or start.shared else start


def _distance(phi: Leaves, begin: Leaves) -> Tensor:
    """Return ‖φ − φ_0‖² of each task, [T]."""
    return torch.stack([(leaf - begin[name]).square().flatten(1).sum(1) for name, leaf in phi.items()]).sum(0)
