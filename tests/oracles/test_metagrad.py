"""The meta-gradient against central differences of the whole procedure, in float64."""

import pytest
import torch

from metatrain.base.text import TextBase
from metatrain.deltas import LoRA, LoRAConfig
from metatrain.deltas.lora import stack
from metatrain.inner import InnerConfig, adapt
from metatrain.metagrad import Mode, Outer, meta_gradient, query_loss
from metatrain.taskbatch import TaskBatch, Tokenized
from tests.oracles.test_inner import start
from tests.tiny import tasks


def batch(base: TextBase, count: int) -> TaskBatch:
    tokenized = Tokenized(base)
    ids, labels = tokenized.rows(tasks(count + 3, shots=3)[3:])
    return TaskBatch(tokenized.support(tasks(count)), base.collate(ids, count), labels)


def loss_after_adaptation(base: TextBase, lora: LoRA, outer: Outer, data: TaskBatch, inner: InnerConfig) -> float:
    count = data.query_labels.shape[0]
    scale = outer.log_scale.exp()
    adapted = adapt(base, lora, stack(outer.theta, count), outer.rates(), scale, data.support, inner)
    with torch.no_grad():
        return float(query_loss(base, lora, adapted, scale, data)[0].mean())


def central_difference(
    base: TextBase, lora: LoRA, outer: Outer, data: TaskBatch, inner: InnerConfig, name: str, toward: torch.Tensor
) -> float:
    step = 1e-6
    values = []
    for sign in (1, -1):
        leaves = outer.leaves()
        leaves[name] = leaves[name] + sign * step * toward
        values.append(loss_after_adaptation(base, lora, Outer.from_leaves(leaves), data, inner))
    return (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_unrolled_is_the_gradient_of_the_whole_procedure(tiny64: TextBase, lora64: LoRA, optimizer: str, steps: int) -> None:
    outer, data = start(lora64), batch(tiny64, 2)
    # A small ε makes Adam's first step nearly sign(g): right, but too sharply bent for differences to follow.
    inner = InnerConfig.model_validate({"steps": steps, "optimizer": optimizer, "epsilon": 1e-2})
    exact = meta_gradient(tiny64, lora64, outer, data, inner, "unrolled")
    generator = torch.Generator().manual_seed(1)
    probed = [n for n in outer.leaves() if "layer.0.attention.self.query" in n or "layer.1.intermediate" in n]
    for name in [*probed, "log_rates.head.weight", "log_rates.head.bias", "log_scale"]:
        leaf = outer.leaves()[name]
        toward = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
        measured = central_difference(tiny64, lora64, outer, data, inner, name, toward)
        predicted = float((exact.gradients[name] * toward).sum())
        assert measured == pytest.approx(predicted, rel=1e-5, abs=1e-8), name


OBJECTIVES = [{"leave_one_out": 1.0}, {"supervised_contrastive": 1.0}, {"cross_entropy": 1.0, "supervised_contrastive": 0.5}]


@pytest.mark.parametrize("objective", OBJECTIVES, ids="+".join)
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_unrolled_is_exact_for_prototypes_of_the_adapted_delta(
    tiny64: TextBase, lora64: LoRA, objective: dict[str, float], optimizer: str
) -> None:
    """Every objective, a rate for each step, and the prototypes taken again under φ_K; with the anchor to the base model."""
    begin = start(lora64, rate=0.01)
    two = {n: torch.stack([log, log - 0.3]).flatten() for n, log in begin.log_rates.items()}
    outer, data = Outer(begin.theta, two, begin.log_scale), batch(tiny64, 2)
    inner = InnerConfig.model_validate(
        {
            "objective": objective,
            "head": "prototypes",
            "head_steps": 2,
            "optimizer": optimizer,
            "epsilon": 1e-2,
            "steps": 2,
            "steps_by_shots": {1: 0, 2: 2},
        }
    )
    exact = meta_gradient(tiny64, lora64, outer, data, inner, "unrolled", anchor=0.7)

    def whole(at: Outer) -> float:
        scale = at.log_scale.exp()
        adapted = adapt(tiny64, lora64, stack(at.theta, 2), at.rates(), scale, data.support, inner)
        with torch.no_grad():
            features = tiny64.features(lora64.fold(adapted.delta), data.query_tokens)
            drift = 1 - (features * tiny64.features(None, data.query_tokens)).sum(-1).mean()
            return float(query_loss(tiny64, lora64, adapted, scale, data)[0].mean() + 0.7 * drift)

    generator = torch.Generator().manual_seed(2)
    probed = [n for n in outer.leaves() if "layer.0.attention.self.value" in n or "layer.1.intermediate" in n]
    for name in [*probed, "log_rates.head.weight", "log_rates.head.bias", "log_scale"]:
        leaf = outer.leaves()[name]
        toward = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
        ends = [Outer.from_leaves({**outer.leaves(), name: leaf + sign * 1e-6 * toward}) for sign in (1, -1)]
        measured = (whole(ends[0]) - whole(ends[1])) / 2e-6
        assert measured == pytest.approx(float((exact.gradients[name] * toward).sum()), rel=1e-5, abs=1e-8), name


def test_unrolled_is_exact_above_layers_that_are_computed_once(tiny64: TextBase) -> None:
    lora = tiny64.attach(LoRAConfig(rank=2, alpha=4, targets=("query", "value"), layers=(1,)))
    outer, data, inner = start(lora), batch(tiny64, 2), InnerConfig(steps=2, optimizer="sgd")
    exact = meta_gradient(tiny64, lora, outer, data, inner, "unrolled")
    for name, leaf in outer.leaves().items():
        if name.startswith("theta."):
            toward = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
            measured = central_difference(tiny64, lora, outer, data, inner, name, toward)
            assert measured == pytest.approx(float((exact.gradients[name] * toward).sum()), rel=1e-5, abs=1e-8), name


def test_first_order_differs_where_it_must_and_agrees_where_it_must(tiny64: TextBase, lora64: LoRA) -> None:
    outer, data = start(lora64), batch(tiny64, 2)
    for steps, alike in ((0, True), (3, False)):
        inner = InnerConfig(steps=steps, optimizer="sgd")
        exact, first = (meta_gradient(tiny64, lora64, outer, data, inner, mode) for mode in ("unrolled", "first_order"))
        assert exact.loss == pytest.approx(first.loss, rel=1e-12)
        name = next(n for n in exact.gradients if n.startswith("theta.") and "lora_B" in n)
        gap = float((exact.gradients[name] - first.gradients[name]).norm() / exact.gradients[name].norm())
        assert (gap < 1e-10) if alike else (gap > 1e-3)


def test_first_order_of_one_sgd_step_is_the_closed_form(tiny64: TextBase, lora64: LoRA) -> None:
    """With g constant, ∂L/∂log α_leaf = −α ⟨∂L/∂φ_1, g⟩, both sides taken independently of `meta_gradient`."""
    outer, data, inner = start(lora64), batch(tiny64, 1), InnerConfig(steps=1, optimizer="sgd")
    first = meta_gradient(tiny64, lora64, outer, data, inner, "first_order")
    scale, rates = outer.log_scale.exp(), outer.rates()
    before = adapt(tiny64, lora64, stack(outer.theta, 1), rates, scale, data.support, inner.model_copy(update={"steps": 0}))
    after = adapt(tiny64, lora64, stack(outer.theta, 1), rates, scale, data.support, inner)
    live = {n: t.clone().requires_grad_() for n, t in after.delta.items()}
    moved = type(after)(live, after.head, after.support_loss)
    loss, _ = query_loss(tiny64, lora64, moved, scale, data)
    gradients = dict(zip(live, torch.autograd.grad(loss.mean(), list(live.values())), strict=True))
    for name in live:
        step = before.delta[name] - after.delta[name]  # = α g
        expected = -float((gradients[name] * step).sum())
        assert float(first.gradients[f"log_rates.{name}"]) == pytest.approx(expected, rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("mode", ["first_order", "unrolled"])
def test_tasks_together_give_the_mean_of_tasks_alone(tiny64: TextBase, lora64: LoRA, mode: Mode) -> None:
    outer, inner = start(lora64), InnerConfig(steps=2)
    together = meta_gradient(tiny64, lora64, outer, batch(tiny64, 3), inner, mode)
    tokenized = Tokenized(tiny64)
    alone = []
    for t in range(3):
        ids, labels = tokenized.rows(tasks(6, shots=3)[3 + t : 4 + t])
        single = TaskBatch(tokenized.support(tasks(3)[t : t + 1]), tiny64.collate(ids, 1), labels)
        alone.append(meta_gradient(tiny64, lora64, outer, single, inner, mode))
    for name, gradient in together.gradients.items():
        mean = torch.stack([a.gradients[name] for a in alone]).mean(0)
        torch.testing.assert_close(gradient, mean, rtol=1e-7, atol=1e-11)
