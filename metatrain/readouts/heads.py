"""The classification head: a linear layer that starts as the prototypes.

    p_c = normalize(Σ_{i: y_i = c} f_i)                               the prototype of class c
    w_c = p_c,  b_c = 0,  logits_c = s · (f · w_c + b_c)              the linear layer that starts from it

Without inner steps this is the prototype classifier. The scale s (inverse temperature) is a part of the initialization.

Snell et al. 2017 (arXiv:1703.05175, eq. 1) for prototypes, here on the unit sphere. Triantafillou et al. 2020 (arXiv:1903.03096,
"Proto-MAML") for the linear layer, here with cosine similarity in place of Euclidean distance.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

HEAD_LEAVES = ("head.weight", "head.bias")
ABSENT = -1.0e9  # finite: −inf would turn into NaN in the second derivative of softmax


@dataclass(frozen=True)
class Head:
    """The heads of T tasks: `weight` [T, C, D], `bias` [T, C] and `present` [T, C].

    `present` is False for the classes that a task with fewer than C classes does not have.
    """

    weight: Tensor
    bias: Tensor
    present: Tensor

    def logits(self, features: Tensor, scale: Tensor) -> Tensor:
        """Return the logits [T, M, C] float32 of features [T, M, D].

        Classes that a task does not have get the logit `ABSENT`. `scale`: s, the inverse temperature, [] or [T, 1, 1].
        """
        raw = scale * (torch.bmm(features, self.weight.transpose(1, 2)) + self.bias.unsqueeze(1))
        return raw.masked_fill(~self.present.unsqueeze(1), ABSENT)


def memberships(labels: Tensor, classes: int) -> Tensor:
    """Return the one-hot encoding [T, M, C] int64 of labels [T, M]. Rows of padding (−1) are all zero."""
    return nn.functional.one_hot(labels.clamp(min=0), classes) * (labels >= 0).unsqueeze(-1)


def linear_from_prototypes(features: Tensor, labels: Tensor, classes: int) -> Head:
    """Return the linear head whose weights w_c are the class prototypes p_c of features [T, M, D].

    The biases b_c are 0. `labels`: [T, M] in 0 … C−1, with −1 for padding. Classes may have different numbers of shots, because a
    prototype is the normalized mean of its class.
    """
    members = memberships(labels, classes).to(features.dtype)
    present = members.sum(1) > 0
    weight = nn.functional.normalize(torch.einsum("tmc,tmd->tcd", members, features), dim=-1)
    return Head(weight, weight.new_zeros(weight.shape[:2]), present)
