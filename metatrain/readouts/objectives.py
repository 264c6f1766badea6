"""The terms of the inner objective, which the inner loop minimizes on the support set.

    cross_entropy            −log softmax_c( s · (f_i · w_c + b_c) )[y_i]          with a linear head w, b
    leave_one_out            the same with w_c the prototype of class c, b_c = 0, and the prototype of y_i computed without row i
    supervised_contrastive   −1/|P_i| Σ_{p ∈ P_i} log( exp(s f_i·f_p) / Σ_{a ≠ i} exp(s f_i·f_a) ),  P_i = the others of i's class

Each term is the mean over a task's rows, [T], and an objective is a weighted sum of terms. Features are on the unit sphere; s
is the initialization's scale, the inverse temperature. leave_one_out and supervised_contrastive skip a row that is the only one of
its class, because its class has no prototype without it, and no row to pair it with.

Snell et al. 2017 (arXiv:1703.05175) for the prototypes, here evaluated on the support set itself. Khosla et al. 2020
(arXiv:2004.11362), eq. 2 ("out"), for the supervised contrastive loss.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from metatrain.readouts.heads import ABSENT, Head, memberships

ObjectiveName = Literal["cross_entropy", "leave_one_out", "supervised_contrastive"]


def cross_entropy(head: Head, features: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """Return the mean cross-entropy over the rows of each task, [T].

    Features are [T, M, D]; labels are [T, M], with −1 for padding.
    """
    logits = head.logits(features, scale)
    rows = nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-1, reduction="none")
    return _mean(rows, labels >= 0)


def leave_one_out(features: Tensor, labels: Tensor, classes: int, scale: Tensor) -> Tensor:
    """Return the mean cross-entropy against prototypes computed without the row itself, [T].

    Features are [T, M, D]; labels are [T, M], with −1 for padding. A row that is the only one of its class is left out of the mean,
    but its class still competes with the others.
    """
    logits = scale * _similarity_left_out(features, labels, classes)
    rows = nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-1, reduction="none")
    return _mean(rows, has_partner(labels))


def leave_one_out_accuracy(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return each task's leave-one-out accuracy: the share of rows nearest to their own class, [T].

    A row is compared to class prototypes by cosine similarity. The prototype of its own class is computed without the row. Features
    are [T, M, D]; labels are [T, M], with −1 for padding. Rows that are the only one of their class are left out of the share. A
    task without any other rows gets NaN.
    """
    hits = _similarity_left_out(features, labels, classes).argmax(-1) == labels
    counted = has_partner(labels)
    return (hits & counted).sum(1).double() / counted.sum(1)  # float64: in float32, 9 of 10 is below 0.9


def _similarity_left_out(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the cosine similarity of each row to each class prototype, [T, M, C].

    The prototype of a row's own class is computed without the row. Classes that a task does not have get `ABSENT`.
    """
    members = memberships(labels, classes).to(features.dtype)
    sums = torch.einsum("tmc,tmd->tcd", members, features)
    others = torch.einsum("tmc,tcd->tmd", members, sums) - features
    counted = has_partner(labels)
    others = torch.where(counted.unsqueeze(-1), others, features)  # never the zero vector: its norm has no second derivative
    own_similarity = (features * nn.functional.normalize(others, dim=-1)).sum(-1, keepdim=True)
    absent = members.sum(1) == 0
    prototypes = nn.functional.normalize(sums.masked_fill(absent.unsqueeze(-1), 1.0), dim=-1)
    similarity = torch.where(members.bool(), own_similarity, torch.bmm(features, prototypes.transpose(1, 2)))
    return similarity.masked_fill(absent.unsqueeze(1), ABSENT)


def supervised_contrastive(features: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """Return the supervised contrastive loss, which pulls rows of one class together, [T].

    Features are [T, M, D]; labels are [T, M], with −1 for padding. A row that is the only one of its class is left out of the mean.
    """
    valid = labels >= 0
    itself = torch.eye(labels.shape[1], dtype=torch.bool, device=labels.device)
    similarity = scale * torch.bmm(features, features.transpose(1, 2))
    log_share = similarity.masked_fill(itself | ~valid.unsqueeze(1), ABSENT).log_softmax(-1)
    partners = (labels.unsqueeze(1) == labels.unsqueeze(2)) & valid.unsqueeze(1) & ~itself
    rows = -log_share.masked_fill(~partners, 0.0).sum(-1) / partners.sum(-1).clamp(min=1)
    return _mean(rows, has_partner(labels))


def has_partner(labels: Tensor) -> Tensor:
    """Return a mask [T, M] bool: True for rows with another row of their class. Padding (−1) is False."""
    same = (labels.unsqueeze(1) == labels.unsqueeze(2)) & (labels >= 0).unsqueeze(1)
    return (same.sum(-1) > 1) & (labels >= 0)


def _mean(rows: Tensor, counted: Tensor) -> Tensor:
    return rows.masked_fill(~counted, 0.0).sum(1) / counted.sum(1).clamp(min=1)
