"""Pooling of hidden states, against a loop over rows."""

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from metatrain.models.modules import Normalize, Truncate
from metatrain.models.pooling import Pooler, Pooling, PoolingName, pooled

STATES = torch.randn(4, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])


def weighted(states: list[Tensor], first: int) -> Tensor:
    weights = [float(first + i) for i in range(len(states))]
    return torch.stack([w * state for w, state in zip(weights, states, strict=True)]).sum(0) / sum(weights)


LOOPS: dict[PoolingName, Callable[[list[Tensor], int], Tensor]] = {
    "mean": lambda states, _: torch.stack(states).mean(0),
    "cls": lambda states, _: states[0],
    "max": lambda states, _: torch.stack(states).max(0).values,
    "lasttoken": lambda states, _: states[-1],
    "mean_sqrt_len_tokens": lambda states, _: torch.stack(states).sum(0) / len(states) ** 0.5,
    "weightedmean": weighted,
}
"""Each pooling of the states of a row's tokens, of which the first has this position, from 1."""


def test_every_pooling_has_a_loop() -> None:
    assert LOOPS.keys() == set(get_args(PoolingName))


@pytest.mark.parametrize("skipped", [0, 1, 2])
@pytest.mark.parametrize("pooling", [*LOOPS, ("cls", "mean"), ("lasttoken", "max", "cls")])
def test_a_pooled_row_is_that_of_a_loop_over_its_tokens(pooling: Pooling, skipped: int) -> None:
    """Skip the tokens of a prompt. A row that has no other tokens is pooled as a whole."""
    names = (pooling,) if isinstance(pooling, str) else pooling
    for row, features in enumerate(Pooler(pooling, skipped_tokens=skipped)(STATES, MASK)):
        real = [STATES[row, position] for position in range(5) if MASK[row, position]]
        left = real[skipped:]
        expected = torch.cat([LOOPS[name](left or real, 1 + (skipped if left else 0)) for name in names])
        torch.testing.assert_close(features, expected / expected.norm())
    if not skipped:
        assert torch.equal(pooled(STATES, MASK, pooling), Pooler(pooling)(STATES, MASK))


@pytest.mark.parametrize("pooling", LOOPS)
def test_a_pooling_has_second_derivatives(pooling: PoolingName) -> None:
    states = STATES[:2].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda s: pooled(s, MASK[:2], pooling), states)


def test_modules_follow_the_pooling_in_their_order() -> None:
    pooler = Pooler(("mean", "cls"), modules=[Normalize(), Truncate(3)])
    assert pooler.width(4) == 3 and Pooler("mean", modules=[Truncate(9)]).width(4) == 4
    expected = pooled(STATES, MASK, ("mean", "cls"))[:, :3]
    torch.testing.assert_close(pooler(STATES, MASK), expected / expected.norm(dim=1, keepdim=True))
