"""Inner objectives: what the support set teaches with."""

from torch import Tensor, nn

from metatrain.heads import Head


def cross_entropy(head: Head, features: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """Mean cross-entropy of each task over its rows: features [T, M, D], labels [T, M] with −1 for padding → [T]."""
    logits = head.logits(features, scale)
    rows = nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-1, reduction="none")
    return rows.sum(1) / (labels >= 0).sum(1).clamp(min=1)
