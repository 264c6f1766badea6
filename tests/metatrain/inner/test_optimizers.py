"""The inner optimizers with their default options, against PyTorch's."""

import pytest
import torch
from torch import Tensor

from metatrain.inner.config import InnerConfig
from metatrain.inner.optimizers import Moments, Optimizer, OptimizerName


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_the_defaults_are_pytorchs(name: OptimizerName) -> None:
    optimizer, rate = Optimizer(name), 0.03
    leaf = torch.linspace(-1.0, 2.0, 7, dtype=torch.float64)
    expected = leaf.clone().requires_grad_()
    theirs: torch.optim.Optimizer = (
        torch.optim.Adam([expected], lr=rate)
        if name == "adam"
        else torch.optim.SGD([expected], lr=rate, momentum=0.9 if name == "momentum" else 0.0)
    )
    generator = torch.Generator().manual_seed(0)
    phi: dict[str, Tensor] = {"a": leaf}
    state: Moments = optimizer.start(phi)
    for step in range(6):
        gradient = torch.randn(7, generator=generator, dtype=torch.float64)
        expected.grad = gradient.clone()
        theirs.step()
        state, moves = optimizer.update(state, {"a": gradient}, step)
        phi = {"a": phi["a"] - rate * moves["a"]}
    torch.testing.assert_close(phi["a"], expected.detach(), rtol=1e-6, atol=1e-9)


def test_adam_moves_a_number_whose_squared_gradient_underflows() -> None:
    """Take one step of Adam in float32 with gradients of zero, of 1e-24, whose square is zero, and of 1."""
    phi = {"a": torch.zeros(3)}
    adam = Optimizer("adam")
    _, moves = adam.update(adam.start(phi), {"a": torch.tensor([0.0, 1e-24, 1.0])}, 0)
    assert moves["a"].tolist() == pytest.approx([0.0, 1e-16, 1.0], rel=1e-5)


def test_an_inner_loop_has_the_same_defaults() -> None:
    assert InnerConfig().update == Optimizer(InnerConfig().optimizer)
