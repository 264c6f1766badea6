"""Inner objectives: what the support set teaches with. Each is the mean over a task's rows, [T]; a mixture is their weighted sum.

All work on the unit sphere with one inverse temperature, the initialization's scale s:

    cross_entropy            −log softmax_c( s · (f_i · w_c + b_c) )[y_i]          on a linear head w, b
    leave_one_out            the same with w_c the prototype of class c, and that of row i's own class made without row i
    supervised_contrastive   −1/|P_i| Σ_{p ∈ P_i} log( exp(s f_i·f_p) / Σ_{a ≠ i} exp(s f_i·f_a) ),  P_i = the others of i's class

Leave-one-out prototypes: Snell et al. 2017 (arXiv:1703.05175), judged on the support set itself. Supervised contrastive: Khosla et
al. 2020 (arXiv:2004.11362), eq. 2 ("out"). Both are blind to a row that is alone in its class: it has no prototype or partner left.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from metatrain.readouts.heads import ABSENT, Head, memberships

ObjectiveName = Literal["cross_entropy", "leave_one_out", "supervised_contrastive"]


def cross_entropy(head: Head, features: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """Mean cross-entropy of each task over its rows: features [T, M, D], labels [T, M] with −1 for padding → [T]."""
    logits = head.logits(features, scale)
    rows = nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-1, reduction="none")
    return _mean(rows, labels >= 0)


def leave_one_out(features: Tensor, labels: Tensor, classes: int, scale: Tensor) -> Tensor:
    """Cross-entropy of each row against prototypes that it is no part of: features [T, M, D], labels [T, M] → [T].

    A row that is alone in its class is left out of the mean (its class still stands against the others).
    """
    logits = scale * _similarity_left_out(features, labels, classes)
    rows = nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-1, reduction="none")
    return _mean(rows, has_partner(labels))


def leave_one_out_accuracy(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Share of the rows nearest to the prototype of their own class, made without them: features [T, M, D], labels [T, M] → [T].

    Rows that are alone in their class do not count; NaN for a task that has no others.
    """
    hits = _similarity_left_out(features, labels, classes).argmax(-1) == labels
    counted = has_partner(labels)
    return (hits & counted).sum(1).double() / counted.sum(1)  # in float32 9 of 10 would be below 0.9


def _similarity_left_out(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Cosine of each row to each prototype, that of its own class made without it [T, M, C]; `ABSENT` for absent classes."""
    members = memberships(labels, classes).to(features.dtype)
    sums = torch.einsum("tmc,tmd->tcd", members, features)
    others = torch.einsum("tmc,tcd->tmd", members, sums) - features
    counted = has_partner(labels)
    others = torch.where(counted.unsqueeze(-1), others, features)  # never the zero vector: its norm has no second derivative
    own = (features * nn.functional.normalize(others, dim=-1)).sum(-1, keepdim=True)
    absent = members.sum(1) == 0
    prototypes = nn.functional.normalize(sums.masked_fill(absent.unsqueeze(-1), 1.0), dim=-1)
    similarity = torch.where(members.bool(), own, torch.bmm(features, prototypes.transpose(1, 2)))
    return similarity.masked_fill(absent.unsqueeze(1), ABSENT)


def supervised_contrastive(features: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """Each row pulled to the others of its class and away from the rest: features [T, M, D], labels [T, M] → [T]."""
    valid = labels >= 0
    itself = torch.eye(labels.shape[1], dtype=torch.bool, device=labels.device)
    similarity = scale * torch.bmm(features, features.transpose(1, 2))
    log_share = similarity.masked_fill(itself | ~valid.unsqueeze(1), ABSENT).log_softmax(-1)
    partners = (labels.unsqueeze(1) == labels.unsqueeze(2)) & valid.unsqueeze(1) & ~itself
    rows = -log_share.masked_fill(~partners, 0.0).sum(-1) / partners.sum(-1).clamp(min=1)
    return _mean(rows, has_partner(labels))


def has_partner(labels: Tensor) -> Tensor:
    """[T, M] → [T, M]: the row is not padding and not alone in its class."""
    same = (labels.unsqueeze(1) == labels.unsqueeze(2)) & (labels >= 0).unsqueeze(1)
    return (same.sum(-1) > 1) & (labels >= 0)


def _mean(rows: Tensor, counted: Tensor) -> Tensor:
    return rows.masked_fill(~counted, 0.0).sum(1) / counted.sum(1).clamp(min=1)
