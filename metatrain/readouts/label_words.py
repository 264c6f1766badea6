"""Decide whether the words of the labels are used as examples.

A label such as `card_arrival` describes its examples, a code such as `P26` does not. The words of a label are one more row, with
the features w_c. As a zero-shot classifier of the M examples, they gain on guessing among the C labels

    gain = 1/M Σ_i log softmax_c( s · f_i · w_c )[y_i] + log C          in nats

They are used if this gain is more than `LEAST_GAIN`: if they alone predict the labels of the examples better than guessing does.
The rule works for two labels with one example each, where a permutation test has only two permutations and can show nothing.
docs/decisions/0022 compares it with such a test and with thresholds on margins.
"""

import math

import torch
from torch import Tensor

from metatrain.inner.problem import Decision

LEAST_GAIN = 0.05
"""In nats per example. Values from 0 to 0.1 choose equally well; above 0, rounding and codes are less often taken for help."""


def decide_label_words(features: Tensor, labels: Tensor, words: Tensor, scale: Tensor) -> Decision:
    """Decide for each of T tasks whether it uses the words of its labels.

    `features` [T, M, D]: those of the support rows under θ, of length 1. `labels`: [T, M], with −1 for padding. `words`: [T, M]
    bool, True for the rows with the words of the labels, one row for each label of a task, or none. `scale`: s. The evidence is the
    gain; None for a task without words.
    """
    gains = [
        gain(f[~is_words & (y >= 0)], y[~is_words & (y >= 0)], f[is_words][y[is_words].argsort()], scale)
        if is_words.any()
        else None
        for f, y, is_words in zip(features, labels, words, strict=True)
    ]
    return Decision(tuple(value is not None and value > LEAST_GAIN for value in gains), tuple(gains))


def gain(features: Tensor, labels: Tensor, words: Tensor, scale: Tensor) -> float:
    """Return how much better than guessing the words predict the labels, in nats per example.

    `features`: those of the M examples of one task, [M, D]. `labels` [M]: 0 … C − 1. `words`: the features w_c, [C, D].
    """
    log_likelihood = -torch.nn.functional.cross_entropy(scale * features @ words.T, labels)
    return float(log_likelihood) + math.log(len(words))
