"""Small problems on which every algorithm learns within seconds, with the defaults of its paper.

MAML, FOMAML, Meta-SGD, ANIL, iMAML and Reptile learn sinusoids (Finn et al. 2017, §5.1). The two ProtoNets need classes: they learn
an embedding that ignores noisy inputs.
"""

import math
from collections.abc import Iterator
from typing import get_args

import torch
from torch import nn

from metatrain.errors import NonFinite
from metatrain.inner.loop import trajectory
from metatrain.inner.nets import EmbeddingTasks, Examples, NetTasks, parameters, regress
from metatrain.inner.problem import Outer
from metatrain.meta.algorithms import AlgorithmSection
from metatrain.training.outer_step import OuterState, outer_step, unusable_gradient
from metatrain.training.recipe import Recipe

ALGORITHMS = tuple(kind.model_fields["name"].default for kind in get_args(get_args(AlgorithmSection)[0]))
_EMBEDDED = ("protonet", "adapted_protonet")
_UNSEEN = 10**6  # the seed of the tasks that are never trained on
_DATA = {
    part: [{"path": "starter", "labels": [f"{domain}/*"]}]
    for part, domain in (("train", "car_rental"), ("valid", "theatre_tickets"))
}


def sinusoids(seed: int, count: int, shots: int = 10) -> tuple[Examples, Examples]:
    """Draw tasks y = A sin(x − p) with A in [0.1, 5], p in [0, π] and x in [−5, 5].

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
    half = ways * shots
    y = torch.arange(ways).repeat(2 * shots).expand(count, 2 * half)
    centers = 2 * torch.randn(count, ways, 2, generator=generator)
    signal = centers.gather(1, y.unsqueeze(-1).expand(-1, -1, 2)) + 0.3 * torch.randn(count, 2 * half, 2, generator=generator)
    x = torch.cat([signal, 3 * torch.randn(count, 2 * half, 10, generator=generator)], dim=-1)
    return Examples(x[:, :half], y[:, :half]), Examples(x[:, half:], y[:, half:])


def learning_curve(algorithm: str, steps: int, every: int) -> Iterator[tuple[int, float]]:
    """Train an algorithm and yield (outer step, mean query loss of 100 unseen tasks) at intervals.

    The loss is measured before the first step, after every `every` steps and after the last step. The recipe sets only the
    algorithm and the size of the outer loop; everything else is a default.
    """
    outer = {"steps": steps, "tasks": 8}
    recipe = Recipe.model_validate({"version": 2, "name": "small", "algorithm": {"name": algorithm}, "outer": outer, "data": _DATA})
    torch.manual_seed(0)
    if algorithm in _EMBEDDED:
        net = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 8))
    else:
        net = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))

    def tasks(seed: int, count: int) -> NetTasks:
        if algorithm in _EMBEDDED:
            return EmbeddingTasks(net, *hidden_classes(seed, count), steps=recipe.inner.most_steps)
        moved = ("4.",) if algorithm == "anil" else ()
        return NetTasks(net, *sinusoids(seed, count), regress, steps=recipe.inner.most_steps, moved=moved)

    theta = parameters(net)
    rates = recipe.algorithm.rates_of(theta, recipe.start.rate, steps=1)
    state = OuterState.start(Outer(theta, rates), recipe.algorithm.learns)
    for step in range(steps + 1):
        outer_values = Outer.from_leaves(state.leaves)
        if step % every == 0 or step == steps:
            unseen = tasks(_UNSEEN, 100)
            *_, end = trajectory(unseen, outer_values, recipe.inner.update)
            yield step, float(unseen.query_loss(end.phi, outer_values, end.of)[0].mean())
        if step < steps:
            try:
                gradient = recipe.algorithm.meta_gradient(tasks(step, 8), outer_values, recipe.inner.update, step)
            except NonFinite:  # skipped and counted, as in a training run
                gradient = unusable_gradient(state.leaves)
            outer_step(recipe.outer, state, gradient)
