"""Every algorithm learns on a small problem, with the defaults of its paper."""

import math
from typing import get_args

import pytest
import torch
from torch import nn

from metatrain.errors import NonFinite
from metatrain.inner.loop import trajectory
from metatrain.inner.nets import EmbeddingTasks, Examples, NetTasks, parameters, regress
from metatrain.inner.problem import Outer
from metatrain.meta.algorithms import AlgorithmSection
from metatrain.training.outer_step import OuterState, outer_step, unusable_gradient
from metatrain.training.recipe import Recipe

ALGORITHMS = {kind.model_fields["name"].default: kind for kind in get_args(get_args(AlgorithmSection)[0])}
STEPS = 150


def sinusoids(seed: int, count: int, shots: int = 10) -> tuple[Examples, Examples]:
    """Draw tasks y = A sin(x − p), as in Finn et al. 2017, §5.1.

    Each task has `shots` support points and as many query points.
    """
    generator = torch.Generator().manual_seed(seed)
    amplitude = 0.1 + 4.9 * torch.rand(count, 1, 1, generator=generator)
    phase = math.pi * torch.rand(count, 1, 1, generator=generator)
    x = 10 * torch.rand(count, 2 * shots, 1, generator=generator) - 5
    y = amplitude * torch.sin(x - phase)
    return Examples(x[:, :shots], y[:, :shots]), Examples(x[:, shots:], y[:, shots:])


def hidden_classes(seed: int, count: int, ways: int = 3, shots: int = 2) -> tuple[Examples, Examples]:
    """Draw classification tasks whose classes differ in two of twelve inputs.

    The other ten inputs are noise of a larger variance.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = 2 * ways * shots
    y = torch.arange(ways).repeat(2 * shots).expand(count, rows)
    centers = 2 * torch.randn(count, ways, 2, generator=generator)
    signal = centers.gather(1, y.unsqueeze(-1).expand(-1, -1, 2)) + 0.3 * torch.randn(count, rows, 2, generator=generator)
    x = torch.cat([signal, 3 * torch.randn(count, rows, 10, generator=generator)], dim=-1)
    half = ways * shots
    return Examples(x[:, :half], y[:, :half]), Examples(x[:, half:], y[:, half:])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_with_its_papers_defaults_learns(name: str) -> None:
    """Train on some tasks, and compare the query loss of other tasks before and after training."""
    recipe = plan(name)
    torch.manual_seed(0)
    embeds = name in ("protonet", "adapted_protonet")
    net = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 8)) if embeds else sinusoid_net()

    def tasks(seed: int, count: int) -> NetTasks:
        steps = recipe.inner.most_steps
        if embeds:
            return EmbeddingTasks(net, *hidden_classes(seed, count), steps=steps)
        return NetTasks(net, *sinusoids(seed, count), regress, steps=steps, moved=("4.",) if name == "anil" else ())

    def query_loss(state: OuterState) -> float:
        unseen, outer = tasks(10**6, 100), Outer.from_leaves(state.leaves)
        *_, end = trajectory(unseen, outer, recipe.inner.update)
        return float(unseen.query_loss(end.phi, outer, end.of)[0].mean())

    theta = parameters(net)
    rates = recipe.algorithm.rates_of(theta, recipe.start.rate, steps=1)
    state = OuterState.start(Outer(theta, rates), recipe.algorithm.learns)
    before = query_loss(state)
    for step in range(recipe.outer.steps):
        try:
            gradient = recipe.algorithm.meta_gradient(tasks(step, 8), Outer.from_leaves(state.leaves), recipe.inner.update, step)
        except NonFinite:  # skipped and counted, as in a training run
            gradient = unusable_gradient(state.leaves)
        outer_step(recipe.outer, state, gradient)
    assert query_loss(state) < 0.9 * before


def plan(name: str) -> Recipe:
    """Return a recipe that names the algorithm, and nothing else about how it learns."""
    data = {
        "train": [{"path": "starter", "labels": ["car_rental/*"]}],
        "valid": [{"path": "starter", "labels": ["public_library/*"]}],
    }
    return Recipe.model_validate(
        {"version": 2, "name": name, "algorithm": {"name": name}, "outer": {"steps": STEPS, "tasks": 8}, "data": data}
    )


def sinusoid_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
