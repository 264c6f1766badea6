"""Class prototypes as a linear head."""

import torch

from metatrain.readouts.heads import ABSENT, linear_from_prototypes


def test_weights_are_normalised_class_means_with_unequal_shots() -> None:
    features = torch.nn.functional.normalize(torch.randn(1, 6, 4, dtype=torch.float64), dim=-1)
    labels = torch.tensor([[0, 1, 1, 1, 2, 2]])
    head = linear_from_prototypes(features, labels, 3)
    for c, rows in enumerate(([0], [1, 2, 3], [4, 5])):
        mean = features[0, rows].mean(0)
        torch.testing.assert_close(head.weight[0, c], mean / mean.norm())
    assert not head.bias.any()


def test_padding_rows_have_no_effect_and_absent_classes_have_no_probability() -> None:
    features = torch.nn.functional.normalize(torch.randn(2, 5, 4), dim=-1)
    labels = torch.tensor([[0, 0, 1, 1, 2], [0, 1, -1, -1, -1]])
    both = linear_from_prototypes(features, labels, 3)
    alone = linear_from_prototypes(features[1:, :2], labels[1:, :2], 2)
    torch.testing.assert_close(both.weight[1, :2], alone.weight[0])
    logits = both.logits(features, torch.tensor(16.0))
    assert (logits[1, :, 2] == ABSENT).all()
    torch.testing.assert_close(
        torch.softmax(logits[1], -1)[:, :2], torch.softmax(alone.logits(features[1:], torch.tensor(16.0))[0], -1)
    )


def test_prototype_classifier_matches_a_loop() -> None:
    """Expect logits of s times the cosine between row and prototype."""
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(1, 9, 5), dim=-1)
    labels = torch.arange(9).remainder(3).unsqueeze(0)
    head = linear_from_prototypes(features, labels, 3)
    prototypes = torch.stack([features[0, labels[0] == c].mean(0) for c in range(3)])
    cosine = torch.nn.functional.cosine_similarity(features[0].unsqueeze(1), prototypes.unsqueeze(0), dim=-1)
    torch.testing.assert_close(head.logits(features, torch.tensor(3.0))[0], 3.0 * cosine)
