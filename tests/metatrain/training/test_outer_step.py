"""Single outer steps against closed forms, and those that are skipped."""

import math
from pathlib import Path

import pytest
import torch

from metatrain.errors import NoMetaGradient, NonFinite
from metatrain.inner.problem import Outer
from metatrain.meta.metagrad import MetaGradient
from metatrain.training.outer_step import OuterConfig, OuterState, outer_step, schedule
from tests.metatrain.training.plans import recipe


def test_an_outer_step_is_adam(tiny_folder: Path) -> None:
    plan = recipe(
        tiny_folder, outer={"steps": 10, "tasks": 1, "learning_rate": 0.1, "rate_learning_rate": 0.2, "warmup": 0, "clip": 1e9}
    )
    outer = Outer({"a": torch.tensor([1.0, -2.0])}, {"a": torch.tensor(0.5)}, torch.tensor(2.0))
    state = OuterState.start(outer)
    ours = {n: t.clone().requires_grad_() for n, t in outer.leaves().items()}
    groups = [{"params": [t], "lr": 0.1 if n.startswith("theta.") else 0.2} for n, t in ours.items()]
    adam = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 10)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        gradients = {n: torch.randn(t.shape, generator=generator) for n, t in ours.items()}
        for n, t in ours.items():
            t.grad = gradients[n]
        adam.step()
        schedule.step()
        outer_step(plan.outer, state, MetaGradient(0.0, 0.0, (), gradients))
    for n, t in ours.items():
        torch.testing.assert_close(state.leaves[n], t.detach())


def test_meta_gradients_that_are_not_finite_are_skipped_and_a_run_of_them_stops_the_training() -> None:
    config = OuterConfig(most_skipped=2, warmup=0)
    state = OuterState.start(Outer({"a": torch.zeros(2)}, {}, torch.tensor(1.0)))
    broken = MetaGradient(0.0, 0.0, (), {"theta.a": torch.tensor([float("nan"), 0.0]), "log_scale": torch.tensor(0.0)})
    sound = MetaGradient(0.0, 0.0, (), {"theta.a": torch.tensor([1.0, -1.0]), "log_scale": torch.tensor(0.0)})
    for _ in range(2):
        assert math.isnan(outer_step(config, state, broken))
    assert not state.leaves["theta.a"].any() and (state.step, state.skipped) == (2, 2)
    assert outer_step(config, state, sound) == pytest.approx(2**0.5)
    # As if it were the first: Adam's bias correction counts the steps that were taken.
    size = config.learning_rate * schedule(config, 3)
    torch.testing.assert_close(state.leaves["theta.a"], torch.tensor([-size, size]))
    assert state.skipped_in_a_row == 0
    for _ in range(2):
        outer_step(config, state, broken)
    with pytest.raises(NonFinite, match=r"theta\.a is not finite at outer step 5, the last of 3 such steps"):
        outer_step(config, state, broken)


def test_a_leaf_that_the_loss_does_not_depend_on_is_named() -> None:
    state = OuterState.start(Outer({"a": torch.zeros(2), "b": torch.zeros(2), "c": torch.zeros(1)}, {}, torch.tensor(1.0)))
    zero, some = torch.zeros(2), torch.ones(2)
    for step in range(4):  # a wakes up late, as LoRA's A does; c is never reached
        gradients = {"theta.a": some if step else zero, "theta.b": some, "theta.c": torch.zeros(1), "log_scale": torch.tensor(0.0)}
        outer_step(OuterConfig(), state, MetaGradient(0.0, 0.0, (), gradients))
    with pytest.raises(NoMetaGradient, match=r"1 of 3 leaves had no meta-gradient in 5 outer steps, the first of them c"):
        outer_step(OuterConfig(), state, MetaGradient(0.0, 0.0, (), gradients))


def test_the_average_of_theta_is_what_is_kept() -> None:
    config = OuterConfig(average=0.5, warmup=0, steps=10**6)
    state = OuterState.start(Outer({"a": torch.zeros(1)}, {}, torch.tensor(1.0)))
    gradients = {"theta.a": torch.ones(1), "log_scale": torch.tensor(0.0)}
    expected = torch.zeros(1)
    for _ in range(3):
        outer_step(config, state, MetaGradient(0.0, 0.0, (), gradients))
        expected = 0.5 * expected + 0.5 * state.leaves["theta.a"]
    torch.testing.assert_close(state.kept(config)["theta.a"], expected)
    assert state.kept(OuterConfig()) is state.leaves
