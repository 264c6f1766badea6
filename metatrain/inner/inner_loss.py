"""The loss that inner steps go down: the support loss, and the proximal term where there is one.

    L_inner(φ) = L_support(φ) + λ/2 ‖φ − φ_0‖²

Rajeswaran et al. 2019 (arXiv:1909.04630), equation 3, for the proximal term.
"""

import torch
from torch import Tensor

from metatrain.inner.problem import Leaves, Outer, Start, Tasks


def inner_loss(tasks: Tasks, phi: Leaves, outer: Outer, step: int, start: Start) -> Tensor:
    """The support loss of step number `step` and the proximal term, [T]: L_support(φ) + λ/2 ‖φ − φ_0‖²."""
    loss = start.first(phi, outer) if step == 0 and start.first is not None else tasks.support_loss(phi, outer, step, start)
    if tasks.proximal:
        loss = loss + 0.5 * tasks.proximal * _distance(phi, start.phi)
    return loss


def seen_from(tasks: Tasks, start: Start, outer: Outer) -> Start:
    """The start as steps see it under `outer`, equal values that a gradient is taken at: made again only if steps read it."""
    return tasks.start(outer) if tasks.proximal or start.shared else start


def _distance(phi: Leaves, begin: Leaves) -> Tensor:
    """‖φ − φ_0‖² of each task, [T]."""
    return torch.stack([(leaf - begin[name]).square().flatten(1).sum(1) for name, leaf in phi.items()]).sum(0)
