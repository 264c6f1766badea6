"""The inner objectives compared with plain loops over their equations."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from metatrain.readouts.objectives import leave_one_out, leave_one_out_accuracy, supervised_contrastive

SCALE = 5.0


def rows(seed: int = 0, count: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, 6, generator=generator, dtype=torch.float64), dim=-1)


LABELS = [0, 0, 1, 1, 1, 2, 2]


def test_leave_one_out_uses_prototypes_without_the_row_itself() -> None:
    features = rows()
    losses = []
    for i, own in enumerate(LABELS):
        logits = []
        for c in range(3):
            members = [j for j, label in enumerate(LABELS) if label == c and j != i]
            logits.append(SCALE * features[i] @ normalize(features[members].sum(0), dim=-1))
        losses.append(-torch.stack(logits).log_softmax(0)[own])
    ours = leave_one_out(features.unsqueeze(0), torch.tensor([LABELS]), 3, torch.tensor(SCALE))
    torch.testing.assert_close(ours, torch.stack(losses).mean().unsqueeze(0))


def test_leave_one_out_accuracy_counts_only_rows_that_are_not_alone_in_their_class() -> None:
    features, other = rows(), rows(3)
    hits = []
    for i, own in enumerate(LABELS):
        prototypes = [features[[j for j, label in enumerate(LABELS) if label == c and j != i]].sum(0) for c in range(3)]
        hits.append(int(torch.stack([features[i] @ normalize(p, dim=-1) for p in prototypes]).argmax()) == own)
    assert 0 < sum(hits) < len(hits)
    similar = normalize(other[:1] + 0.01 * other[1:2], dim=-1)
    second = torch.cat([other[:1], similar, -other[:1], other[3:]])  # two similar rows, one alone in its class, padding
    found = leave_one_out_accuracy(torch.stack([features, second]), torch.tensor([LABELS, [0, 0, 1, -1, -1, -1, -1]]), 3)
    assert found.tolist() == pytest.approx([sum(hits) / len(hits), 1.0])
    axes = torch.eye(6, dtype=torch.float32)[[0] * 5 + [1] * 4 + [0]].unsqueeze(0)
    # The accuracy must be exact, because the inner loop compares it with a threshold such as 0.9.
    assert leave_one_out_accuracy(axes, torch.tensor([[0] * 5 + [1] * 5]), 2).tolist() == [9 / 10]
    assert leave_one_out_accuracy(other[:2].unsqueeze(0), torch.tensor([[0, 1]]), 3).isnan().all()


def test_supervised_contrastive_is_the_sum_of_the_paper() -> None:
    features = rows()
    losses = []
    for i, own in enumerate(LABELS):
        others = [a for a in range(len(LABELS)) if a != i]
        total = sum(math.exp(SCALE * float(features[i] @ features[a])) for a in others)
        partners = [p for p in others if LABELS[p] == own]
        shares = [math.log(math.exp(SCALE * float(features[i] @ features[p])) / total) for p in partners]
        losses.append(-sum(shares) / len(partners))
    ours = supervised_contrastive(features.unsqueeze(0), torch.tensor([LABELS]), torch.tensor(SCALE))
    assert float(ours) == pytest.approx(sum(losses) / len(losses), rel=1e-12)


@pytest.mark.parametrize("objective", ["leave_one_out", "supervised_contrastive"])
def test_rows_alone_in_their_class_count_only_as_negatives_and_padding_not_at_all(objective: str) -> None:
    def loss(features: Tensor, labels: list[list[int]]) -> Tensor:
        if objective == "leave_one_out":
            return leave_one_out(features, torch.tensor(labels), 3, torch.tensor(SCALE))
        return supervised_contrastive(features, torch.tensor(labels), torch.tensor(SCALE))

    features = rows(1)
    padded = loss(features.unsqueeze(0), [[0, 0, 1, 1, -1, -1, -1]])
    torch.testing.assert_close(padded, loss(features[:4].unsqueeze(0), [[0, 0, 1, 1]]))
    together = loss(torch.stack([features, rows(2)]), [LABELS, [0, 0, 1, 1, -1, -1, -1]])
    torch.testing.assert_close(together[0], loss(features.unsqueeze(0), [LABELS])[0])
    with_single = loss(features[:5].unsqueeze(0), [[0, 0, 1, 1, 2]])
    assert float(with_single) > float(loss(features[:4].unsqueeze(0), [[0, 0, 1, 1]]))
    assert float(loss(features[:3].unsqueeze(0), [[0, 1, 2]])) == 0.0


@pytest.mark.parametrize("objective", ["leave_one_out", "supervised_contrastive"])
def test_first_and_second_derivatives_exist_even_with_rows_alone_in_their_class(objective: str) -> None:
    labels = torch.tensor([[0, 0, 1, 1, 2, -1]])

    def loss(raw: Tensor) -> Tensor:
        features = normalize(raw, dim=-1).unsqueeze(0)
        if objective == "leave_one_out":
            return leave_one_out(features, labels, 4, torch.tensor(SCALE, dtype=torch.float64))[0]  # one class is absent
        return supervised_contrastive(features, labels, torch.tensor(SCALE, dtype=torch.float64))[0]

    raw = rows(3, 6).requires_grad_()
    assert torch.autograd.gradcheck(loss, raw)
    assert torch.autograd.gradgradcheck(loss, raw)
