"""The loss that inner steps minimise: the support loss plus the proximal term, if there is one.

    L_inner(φ) = L_support(φ) + λ/2 ‖φ − φ_0‖²

The proximal term is that of Rajeswaran et al. 2019 (arXiv:1909.04630), equation 3.
"""

import torch
from torch import Tensor

from metatrain.inner.problem import Leaves, Outer, Start, Tasks


def inner_loss(tasks: Tasks, phi: Leaves, outer: Outer, step: int, start: Start) -> Tensor:
    """Return L_support(φ) + λ/2 ‖φ − φ_0‖² of each task, [T], for step number `step`.

    If `start.first` is set, it computes the support loss of step 0, because it can reuse the forward pass that `Tasks.start` ran.
    """
    loss = start.first(phi, outer) if step == 0 and start.first is not None else tasks.support_loss(phi, outer, step, start)
    if tasks.proximal:
        loss = loss + 0.5 * tasks.proximal * _distance(phi, start.phi)
    return loss


def differentiable_start(tasks: Tasks, start: Start, outer: Outer) -> Start:
    """Return `start` connected to `outer` in the autograd graph, if the inner loss depends on the start.

    The inner loss depends on the start if there is a proximal term, or if the losses read `start.shared`. In this case the start is
    recomputed from `outer`, with the same values. Otherwise `start` is returned unchanged.
    """
    return tasks.start(outer) if tasks.proximal or start.shared else start


def _distance(phi: Leaves, begin: Leaves) -> Tensor:
    """Return ‖φ − φ_0‖² of each task, [T]."""
    return torch.stack([(leaf - begin[name]).square().flatten(1).sum(1) for name, leaf in phi.items()]).sum(0)
