"""Pooling of hidden states, against a loop over rows."""

import pytest
import torch

from metatrain.models.backbone import Pooling, pooled


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_pooled_row_is_the_unit_mean_of_its_real_tokens_or_its_first_token(pooling: Pooling) -> None:
    states = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    for row, features in enumerate(pooled(states, mask, pooling)):
        real = [states[row, position] for position in range(5) if mask[row, position]]
        expected = torch.stack(real).mean(0) if pooling == "mean" else states[row, 0]
        torch.testing.assert_close(features, expected / expected.norm())
