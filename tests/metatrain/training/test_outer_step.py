"""Single outer steps compared with closed forms, and skipped steps."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from metatrain.errors import DataError, NoMetaGradient, NonFinite
from metatrain.inner.problem import Outer
from metatrain.meta.algorithms import FOMAML
from metatrain.meta.metagrad import MetaGradient
from metatrain.training.outer_step import OuterConfig, OuterState, outer_step, schedule
from tests.metatrain.training.plans import recipe


def test_an_outer_step_is_adam(tiny_folder: Path) -> None:
    plan = recipe(
        tiny_folder,
        outer={
            "steps": 10,
            "tasks": 1,
            "learning_rate": 0.1,
            "rate_learning_rate": 0.2,
            "warmup": 0,
            "clip": None,
            "decay": "cosine",
        },
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


def test_steps_without_a_finite_gradient_are_skipped_and_too_many_stop_the_training() -> None:
    config = OuterConfig(most_skipped=2, warmup=0)
    state = OuterState.start(Outer({"a": torch.zeros(2)}, {}, torch.tensor(1.0)))
    broken = MetaGradient(0.0, 0.0, (), {"theta.a": torch.tensor([float("nan"), 0.0]), "log_scale": torch.tensor(0.0)})
    finite = MetaGradient(0.0, 0.0, (), {"theta.a": torch.tensor([1.0, -1.0]), "log_scale": torch.tensor(0.0)})
    for _ in range(2):
        assert math.isnan(outer_step(config, state, broken))
    assert not state.leaves["theta.a"].any() and (state.step, state.skipped) == (2, 2)
    assert outer_step(config, state, finite) == pytest.approx(2**0.5)
    # Skipped steps do not count in Adam's bias correction, so this step is its first.
    size = config.learning_rate * schedule(config, 3)
    torch.testing.assert_close(state.leaves["theta.a"], torch.tensor([-size, size]))
    assert state.skipped_in_a_row == 0
    for _ in range(2):
        outer_step(config, state, broken)
    with pytest.raises(NonFinite, match=r"theta\.a is not finite at outer step 5, the last of 3 such steps"):
        outer_step(config, state, broken)


def test_the_error_names_a_leaf_that_the_loss_does_not_depend_on() -> None:
    state = OuterState.start(Outer({"a": torch.zeros(2), "b": torch.zeros(2), "c": torch.zeros(1)}, {}, torch.tensor(1.0)))
    zeros, ones = torch.zeros(2), torch.ones(2)
    for step in range(4):  # `a` has no gradient in the first step, like LoRA's A; `c` never has one
        gradients = {"theta.a": ones if step else zeros, "theta.b": ones, "theta.c": torch.zeros(1), "log_scale": torch.tensor(0.0)}
        outer_step(OuterConfig(), state, MetaGradient(0.0, 0.0, (), gradients))
    with pytest.raises(NoMetaGradient, match=r"1 of 3 leaves had no meta-gradient in 5 outer steps, the first of them c"):
        outer_step(OuterConfig(), state, MetaGradient(0.0, 0.0, (), gradients))


def test_the_average_of_theta_is_kept() -> None:
    config = OuterConfig(average=0.5, warmup=0, steps=10**6)
    state = OuterState.start(Outer({"a": torch.zeros(1)}, {}, torch.tensor(1.0)))
    gradients = {"theta.a": torch.ones(1), "log_scale": torch.tensor(0.0)}
    expected = torch.zeros(1)
    for _ in range(3):
        outer_step(config, state, MetaGradient(0.0, 0.0, (), gradients))
        expected = 0.5 * expected + 0.5 * state.leaves["theta.a"]
    torch.testing.assert_close(state.kept(config)["theta.a"], expected)
    assert state.kept(OuterConfig()) is state.leaves


@pytest.mark.parametrize(
    ("decay", "shares"), [("none", [1, 1, 1, 1]), ("linear", [1, 0.75, 0.5, 0.25]), ("cosine", [1, 0.8536, 0.5, 0.1464])]
)
def test_the_learning_rate_follows_its_decay(decay: str, shares: list[float]) -> None:
    config = OuterConfig.model_validate({"decay": decay, "steps": 4, "warmup": 0})
    assert [schedule(config, step) for step in (1, 2, 3, 4)] == pytest.approx(shares, abs=1e-4)
    with_warmup = config.model_copy(update={"warmup": 2})
    assert schedule(with_warmup, 1) == pytest.approx(0.5 * shares[0])


def test_the_average_is_weighted_by_its_decay() -> None:
    """Check average ← 0.9 average + 0.1 leaf. The weights are unequal, so that a swap is noticed."""
    config = OuterConfig(average=0.9, optimizer="sgd", learning_rate=1.0, warmup=0, decay="none", clip=None)
    state = OuterState.start(Outer({"a": torch.zeros(1)}, {}, torch.tensor(1.0)))
    outer_step(config, state, MetaGradient(0.0, 0.0, (), {"theta.a": -torch.ones(1)}))
    torch.testing.assert_close(state.average["theta.a"], torch.tensor([0.1]))


def test_only_learned_leaves_move() -> None:
    """Ignore the gradients of leaves that are not learned, even if those gradients are not finite."""
    state = OuterState.start(Outer({"a": torch.zeros(1)}, {"a": torch.tensor([0.5])}, torch.tensor(2.0)), FOMAML().learns)
    before = dict(state.leaves)
    gradients = {"theta.a": torch.ones(1), "log_rates.a": torch.tensor([float("nan")]), "log_scale": torch.tensor(3.0)}
    assert outer_step(OuterConfig(warmup=0), state, MetaGradient(0.0, 0.0, (), gradients)) == 1.0
    assert state.leaves["theta.a"].any() and not state.skipped
    assert all(torch.equal(state.leaves[name], before[name]) for name in ("log_rates.a", "log_scale"))


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "no metadata", "other metadata", "other tensors"])
def test_a_damaged_checkpoint_is_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "checkpoint.safetensors"
    state = OuterState.start(Outer({"a": torch.ones(2)}, {"a": torch.tensor(0.5)}, torch.tensor(2.0)))
    state.save(path, "run")
    assert OuterState.load(path, "run") is not None
    good, leaf = path.read_bytes(), {"a": torch.ones(2)}
    contents = {"empty": b"", "cut": good[:-5], "text": b"not a checkpoint", "no metadata": save(leaf)}
    contents |= {"other metadata": save(leaf, {"state": "[]"}), "other tensors": save(leaf, {"state": '{"run_digest": "run"}'})}
    path.write_bytes(contents[damage])
    with pytest.raises(DataError, match=r"checkpoint\.safetensors: not a checkpoint: .*; choose another --out folder"):
        OuterState.load(path, "run")
