"""What turns features into predictions: a linear layer that starts as the prototypes.

Prototype of class c (Snell et al. 2017, arXiv:1703.05175, eq. 1, on the unit sphere): p_c = normalize(Σ_{i: y_i = c} f_i).
Linear layer started from it (Triantafillou et al. 2020, arXiv:1903.03096, "Proto-MAML", for cosine instead of Euclidean
distance): w_c = p_c, b_c = 0, logits = s · (f · w_c + b_c). At zero inner steps it *is* the prototype classifier. The scale s
(inverse temperature) belongs to the initialization.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

HEAD_LEAVES = ("head.weight", "head.bias")
ABSENT = -1.0e9  # finite: −inf would turn into NaN in the second derivative of softmax


@dataclass(frozen=True)
class Head:
    """T heads side by side: `weight` [T, C, D], `bias` [T, C], `present` [T, C]: False where a task has fewer classes."""

    weight: Tensor
    bias: Tensor
    present: Tensor

    def logits(self, features: Tensor, scale: Tensor) -> Tensor:
        """features [T, M, D], scale [] or [T, 1, 1] → [T, M, C] float32; classes that are absent get `ABSENT`."""
        raw = scale * (torch.bmm(features, self.weight.transpose(1, 2)) + self.bias.unsqueeze(1))
        return raw.masked_fill(~self.present.unsqueeze(1), ABSENT)


def memberships(labels: Tensor, classes: int) -> Tensor:
    """labels [T, M] with −1 for padding → [T, M, C] int64: 1 where the row is of the class; padding is of none."""
    return nn.functional.one_hot(labels.clamp(min=0), classes) * (labels >= 0).unsqueeze(-1)


def linear_from_prototypes(features: Tensor, labels: Tensor, classes: int) -> Head:
    """features [T, M, D], labels [T, M] in 0 … C−1 with −1 for padding → a Head with w_c = p_c, b_c = 0.

    Shots may differ between classes: each prototype is its own class's mean.
    """
    members = memberships(labels, classes).to(features.dtype)
    present = members.sum(1) > 0
    weight = nn.functional.normalize(torch.einsum("tmc,tmd->tcd", members, features), dim=-1)
    return Head(weight, weight.new_zeros(weight.shape[:2]), present)
