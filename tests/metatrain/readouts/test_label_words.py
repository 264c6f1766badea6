"""The decision about label words, against a plain loop."""

import math

import pytest
import torch

from metatrain.readouts.label_words import decide_label_words, gain

SCALE = torch.tensor(7.0)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_the_gain_is_the_likelihood_of_the_labels_over_guessing() -> None:
    features, words, labels = unit(5, 4), unit(3, 4, seed=1), [0, 2, 1, 1, 0]
    total = 0.0
    for row, label in zip(features, labels, strict=True):
        scores = [math.exp(7 * float(row @ word)) for word in words]
        total += math.log(scores[label] / sum(scores)) - math.log(1 / 3)
    assert gain(features, torch.tensor(labels), words, SCALE) == pytest.approx(total / 5, abs=1e-5)


def test_words_are_used_if_they_are_near_the_examples_of_their_own_labels() -> None:
    """Give two tasks the words of their labels, the second one in exchanged order, and a third one none."""
    centres = torch.eye(3, 4)
    examples = torch.nn.functional.normalize(centres.repeat(2, 1) + 0.1 * unit(6, 4), dim=-1)
    exchanged = centres[[1, 2, 0]]
    rows = torch.stack([torch.cat([examples, words]) for words in (centres, exchanged, centres)])
    labels = torch.tensor([0, 1, 2] * 3).repeat(3, 1)
    labels[2, 6:] = -1
    words = torch.zeros_like(labels, dtype=torch.bool)
    words[:2, 6:] = True
    decision = decide_label_words(rows, labels, words, SCALE)
    assert decision.used == (True, False, False) and decision.evidence[2] is None
    assert decision.evidence[0] == pytest.approx(gain(examples, labels[0, :6], centres, SCALE))
    assert decision.evidence[1] == pytest.approx(gain(examples, labels[0, :6], exchanged, SCALE))


def test_the_order_of_the_words_and_padding_do_not_matter() -> None:
    examples, words = unit(4, 4), unit(2, 4, seed=1)
    labels = torch.tensor([[0, 1, 1, 0, 1, 0, -1]])
    rows = torch.cat([examples, words.flip(0), unit(1, 4, seed=2)]).unsqueeze(0)
    optional = torch.tensor([[False] * 4 + [True] * 2 + [False]])
    (found,) = decide_label_words(rows, labels, optional, SCALE).evidence
    assert found == pytest.approx(gain(examples, labels[0, :4], words, SCALE))
