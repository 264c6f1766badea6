"""The inner loop against PyTorch's optimizers and plain loops, and the errors that it raises."""

import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from metatrain.deltas import LoRA
from metatrain.errors import AdaptationError, DeadlineExceeded, NonFinite
from metatrain.inner.config import HardSteps, InnerConfig, InParts, Objective
from metatrain.inner.encoded import Encoded
from metatrain.inner.loop import adapt
from metatrain.inner.problem import Outer, stack, start_rates
from metatrain.inner.supervised import Supervised
from metatrain.models.base import Base
from metatrain.readouts.classes import ClassReadout, cut
from metatrain.readouts.heads import HEAD_LEAVES, Head, linear_from_prototypes
from metatrain.readouts.objectives import cross_entropy, leave_one_out, supervised_contrastive
from tests.tiny import tasks

SCALE = 8.0


def start(lora: LoRA, dtype: torch.dtype = torch.float64, rate: float = 0.05) -> Outer:
    theta = lora.initial(torch.Generator().manual_seed(0), b_std=0.2)
    rates = start_rates(theta, rate) | start_rates(HEAD_LEAVES, 2 * rate)
    return Outer.from_values({n: t.to(dtype) for n, t in Outer(theta, rates, torch.tensor(SCALE)).values().items()})


@dataclass(frozen=True)
class Run:
    delta: dict[str, Tensor]
    head: Head
    support_loss: Tensor


def run(
    base: Base,
    lora: LoRA,
    support: list[list[tuple[str, int]]],
    config: InnerConfig,
    *,
    outer: Outer | None = None,
    steps: int | None = None,
    seed: int = 0,
    serving: bool = False,
    **more: Any,
) -> Run:
    """Run the inner loop on the support sets. If `outer` is None, begin with `start(lora, base.dtype)`."""
    outer = start(lora, base.dtype) if outer is None else outer
    classified = Supervised(
        base, lora, ClassReadout, config, Encoded(base).support(support), steps=steps, seed=seed, serving=serving
    )
    end = adapt(classified, outer, config.update, **more)
    adapted = classified.adapted(end.phi, outer, end.of)
    losses = torch.stack(end.losses) if end.losses else torch.zeros(0, len(support))
    present = classified.support.targets.present
    return Run(adapted.delta, Head(adapted.answering["head.weight"], adapted.answering["head.bias"], present), losses)


def flat(adapted: Run, task: int) -> Tensor:
    head = [
        adapted.head.weight[task][adapted.head.present[task]],
        adapted.head.bias[task][adapted.head.present[task]],
    ]
    return torch.cat([t.flatten() for t in [*(leaf[task] for leaf in adapted.delta.values()), *head]])


def with_pytorch(
    base: Base, lora: LoRA, pairs: list[tuple[str, int]], steps: int, make: type[torch.optim.Optimizer], **kw: Any
) -> Tensor:
    """Run the inner loop of one task with a PyTorch optimizer. Return all leaves as one flat tensor.

    Each leaf is a parameter group of its own.
    """
    outer = start(lora)
    live = {n: t.clone().unsqueeze(0).requires_grad_() for n, t in outer.theta.items()}
    support = Encoded(base).support([pairs])
    tokens, labels = base.inputs.collate(support.rows), support.targets.labels
    prototypes = []
    with torch.no_grad():
        features = base.features(lora.fold(live), tokens)
    for c in range(support.targets.classes):
        mean = features[labels[0] == c].mean(0)
        prototypes.append(mean / mean.norm())
    weight = torch.stack(prototypes).unsqueeze(0).requires_grad_()
    bias = torch.zeros(1, support.targets.classes, dtype=torch.float64, requires_grad=True)
    rates = outer.rates
    leaves = {**live, "head.weight": weight, "head.bias": bias}
    optimizer = make([{"params": [leaf], "lr": float(rates[name])} for name, leaf in leaves.items()], **kw)
    present = torch.ones(1, support.targets.classes, dtype=torch.bool)
    for _ in range(steps):
        optimizer.zero_grad()
        features = base.features(lora.fold(live), tokens).unsqueeze(0)
        cross_entropy(Head(weight, bias, present), features, labels, torch.tensor(SCALE)).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return torch.cat([leaf.detach()[0].flatten() for leaf in leaves.values()])


def test_sgd_matches_pytorch(tiny64: Base, lora64: LoRA) -> None:
    pairs = tasks(1)[0]
    ours = flat(run(tiny64, lora64, [pairs], InnerConfig(steps=3, optimizer="sgd")), 0)
    torch.testing.assert_close(ours, with_pytorch(tiny64, lora64, pairs, 3, torch.optim.SGD), rtol=1e-9, atol=1e-11)


def test_adam_matches_pytorch(tiny64: Base, lora64: LoRA) -> None:
    pairs = tasks(1)[0]
    ours = flat(run(tiny64, lora64, [pairs], InnerConfig(steps=4, optimizer="adam", epsilon=1e-12)), 0)
    torch.testing.assert_close(ours, with_pytorch(tiny64, lora64, pairs, 4, torch.optim.Adam, eps=1e-12), rtol=1e-5, atol=1e-6)


def test_momentum_matches_pytorch(tiny64: Base, lora64: LoRA) -> None:
    pairs = tasks(1)[0]
    ours = flat(run(tiny64, lora64, [pairs], InnerConfig(steps=4, optimizer="momentum", beta1=0.8)), 0)
    theirs = with_pytorch(tiny64, lora64, pairs, 4, torch.optim.SGD, momentum=0.8)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_each_step_uses_its_own_rate_and_later_steps_use_the_last_one(tiny64: Base, lora64: LoRA) -> None:
    outer, config = start(lora64), InnerConfig(steps=3, optimizer="sgd")
    only_first = {name: torch.cat([rate, torch.zeros(1, dtype=torch.float64)]) for name, rate in outer.rates.items()}
    stopped = run(tiny64, lora64, tasks(1), config, outer=replace(outer, rates=only_first))
    first = run(tiny64, lora64, tasks(1), config, steps=1)
    torch.testing.assert_close(flat(stopped, 0), flat(first, 0), rtol=0, atol=0)


MIXTURES: list[dict[str, Any]] = [
    {"objective": {"leave_one_out": 1.0}, "head": "prototypes"},
    {"objective": {"supervised_contrastive": 1.0}, "head": "prototypes"},
    {"objective": {"cross_entropy": 0.5, "supervised_contrastive": 2.0}, "head": "linear"},
    {"objective": {"cross_entropy": 1.0}, "head": "prototypes"},
]


@pytest.mark.parametrize("mixture", MIXTURES, ids=lambda m: "+".join(m["objective"]) + " " + m["head"])
def test_an_sgd_step_follows_the_gradient_of_the_weighted_objectives(tiny64: Base, lora64: LoRA, mixture: dict[str, Any]) -> None:
    outer, pairs = start(lora64), tasks(1)[0]
    config = InnerConfig.model_validate({**mixture, "steps": 1, "optimizer": "sgd", "steps_by_shots": {1: 0, 2: 1}})
    moved = run(tiny64, lora64, [pairs], config)
    support = Encoded(tiny64).support([pairs])
    batch = tiny64.inputs.collate(support.rows)
    live = {n: t.clone().unsqueeze(0).requires_grad_() for n, t in outer.theta.items()}
    features = tiny64.features(lora64.fold(live), batch).unsqueeze(0)
    head = linear_from_prototypes(features.detach(), support.targets.labels, 3)
    scale = torch.tensor(SCALE, dtype=torch.float64)
    parts = {
        "cross_entropy": cross_entropy(head, features, support.targets.labels, scale),
        "leave_one_out": leave_one_out(features, support.targets.labels, 3, scale),
        "supervised_contrastive": supervised_contrastive(features, support.targets.labels, scale),
    }
    loss = sum((weight * parts[name] for name, weight in mixture["objective"].items()), torch.zeros(1))
    gradients = torch.autograd.grad(loss.sum(), list(live.values()))
    for (name, leaf), g in zip(live.items(), gradients, strict=True):
        torch.testing.assert_close(moved.delta[name], leaf.detach() - outer.rates[name] * g, rtol=1e-9, atol=1e-12)
    if mixture["head"] == "prototypes":
        with torch.no_grad():
            after = tiny64.features(lora64.fold(moved.delta), batch).unsqueeze(0)
        torch.testing.assert_close(
            moved.head.weight, linear_from_prototypes(after, support.targets.labels, 3).weight, rtol=1e-9, atol=1e-12
        )


def test_head_steps_are_adam_on_constant_features(tiny64: Base, lora64: LoRA) -> None:
    pairs, outer = tasks(1)[0], start(lora64)
    content = {
        "objective": {"leave_one_out": 1.0},
        "head": "prototypes",
        "epsilon": 1e-12,
        "steps": 1,
        "steps_by_shots": {1: 0, 2: 1},
    }
    plain = run(tiny64, lora64, [pairs], InnerConfig.model_validate(content))
    refined = run(tiny64, lora64, [pairs], InnerConfig.model_validate({**content, "head_steps": 5}))
    for name in plain.delta:
        assert torch.equal(plain.delta[name], refined.delta[name])
    support = Encoded(tiny64).support([pairs])
    with torch.no_grad():
        features = tiny64.features(lora64.fold(plain.delta), tiny64.inputs.collate(support.rows)).unsqueeze(0)
    weight, bias = plain.head.weight.clone().requires_grad_(), plain.head.bias.clone().requires_grad_()
    adam = torch.optim.Adam([{"params": [leaf], "lr": float(outer.rates["head.weight"])} for leaf in (weight, bias)], eps=1e-12)
    for _ in range(5):
        adam.zero_grad()
        head = Head(weight, bias, plain.head.present)
        cross_entropy(head, features, support.targets.labels, torch.tensor(SCALE)).sum().backward()  # type: ignore[no-untyped-call]
        adam.step()
    torch.testing.assert_close(refined.head.weight, weight.detach(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(refined.head.bias, bias.detach(), rtol=1e-6, atol=1e-8)
    none = run(tiny64, lora64, [pairs], InnerConfig.model_validate({**content, "head_steps": 5}), steps=0)
    torch.testing.assert_close(none.head.weight, run(tiny64, lora64, [pairs], InnerConfig(steps=0)).head.weight)


def test_a_row_that_is_not_alone_in_its_class_is_not_alone_in_its_part() -> None:
    labels = torch.tensor([c for c in range(77) for _ in range(2)] + [80] * 3 + [81] + [-1] * 5)
    parts = cut(labels, 3, seed=0)
    assert sorted(torch.cat(parts).tolist()) == list(range(len(labels)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 3
    for part in parts:
        for label, count in Counter(labels[part].tolist()).items():
            assert count > 1 or label == 81
    assert not torch.equal(parts[0], cut(labels, 3, seed=1)[0])


def test_the_number_of_steps_depends_on_the_mean_shots() -> None:
    config = InnerConfig(steps=9, steps_by_shots={2: 3, 5: 5}, rows_per_step=40)
    assert [config.steps_for(n, 4) for n in (4, 7, 8, 19, 20, 40)] == [9, 9, 3, 3, 5, 5]
    assert config.steps_for(41, 4) == 2 * 5 and config.steps_for(100, 4) == 3 * 5
    assert config.most_steps == 9


def test_the_steps_of_a_support_set_in_parts_are_bounded_and_hard_steps_count_only_if_more() -> None:
    parts = InParts(objective={"cross_entropy": 1.0}, most=6)
    config = InnerConfig(steps=2, rows_per_step=40, hard_steps=HardSteps(below=0.8, steps=10), in_parts=parts)
    assert [config.steps_for(n, 4) for n in (40, 41, 200, 240, 1000)] == [2, 4, 10, 12, 12]
    assert [config.asks(n, 4) for n in (40, 160, 161, 1000)] == [
        True,
        True,
        False,
        False,
    ]  # 161 rows already take ten steps, and hard_steps asks for ten, which is not more
    assert config.meta_trained == InnerConfig(steps=2, rows_per_step=40)


def test_the_objective_of_parts_is_used_only_when_serving_large_support_sets(tiny: Base, lora: LoRA) -> None:
    both: Objective = {"supervised_contrastive": 1.0, "cross_entropy": 1.0}
    config = InnerConfig(
        objective={"supervised_contrastive": 1.0},
        head="prototypes",
        head_steps=2,
        steps=3,
        steps_by_shots={1: 0, 2: 3},
        rows_per_step=9,
    )
    with_parts = config.model_copy(update={"in_parts": InParts(objective=both)})
    larger, smaller = tasks(1, ways=4, shots=4), tasks(1, ways=3, shots=3)
    for support, serving, same in (
        (larger, True, config.model_copy(update={"objective": both})),
        (larger, False, config),
        (smaller, True, config),
    ):
        found, expected = (flat(run(tiny, lora, support, c, serving=serving), 0) for c in (with_parts, same))
        assert torch.equal(found, expected)
    assert not torch.equal(*(flat(run(tiny, lora, larger, c, serving=True), 0) for c in (with_parts, config)))


def test_the_number_of_rows_decides_which_objective_must_learn_from_one_example_a_class() -> None:
    contrastive: Objective = {"supervised_contrastive": 1.0}
    whole = InnerConfig(
        objective=contrastive, head="prototypes", steps=0, rows_per_step=8, in_parts=InParts(objective={"cross_entropy": 1})
    )
    parts = InnerConfig(head="prototypes", steps=0, rows_per_step=8, in_parts=InParts(objective=contrastive))
    assert [whole.teaches_one_shot(rows) for rows in (8, 9)] == [False, True]
    assert [parts.teaches_one_shot(rows) for rows in (8, 9)] == [True, False]
    assert InnerConfig(rows_per_step=8).teaches_one_shot(9)


def test_support_sets_in_parts_must_have_equal_numbers_of_rows_in_one_pass(tiny: Base, lora: LoRA) -> None:
    both = [tasks(1, ways=4, shots=4)[0], tasks(1, ways=3, shots=3)[0]]
    with pytest.raises(ValueError, match=r"must have equal numbers of rows in one pass, got \[9, 16\]"):
        run(tiny, lora, both, InnerConfig(steps=1, rows_per_step=9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moved": "head"}, 'in_parts: expected none with moved "head"'),
        ({}, "in_parts.objective: expected cross_entropy in it"),
        ({"head": "prototypes"}, "in_parts.objective: supervised_contrastive learns nothing from one example a class"),
    ],
)
def test_an_objective_of_parts_that_cannot_learn_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InnerConfig(in_parts=InParts(objective={"supervised_contrastive": 1.0}), **change)


def test_tasks_with_different_steps_or_views_do_not_share_a_pass(tiny: Base, lora: LoRA) -> None:
    unequal = [tasks(2, shots=1)[0], tasks(2, shots=2)[1]]
    with pytest.raises(ValueError, match=r"must take the same number of steps, got \[1, 4\]"):
        run(tiny, lora, unequal, InnerConfig(steps=4, steps_by_shots={1: 1, 2: 4}))
    views = {"kind": "span_mask", "strength": 0.3}
    with pytest.raises(ValueError, match="must all have at most 1 examples a class, or none"):
        run(tiny, lora, unequal, InnerConfig.model_validate({"augmentation": views}))


def test_an_objective_that_cannot_learn_from_one_example_a_class_is_refused(tiny: Base, lora: LoRA) -> None:
    contrastive = {"objective": {"supervised_contrastive": 1.0}, "head": "prototypes"}
    with pytest.raises(ValueError, match="learns nothing from one example a class"):
        InnerConfig.model_validate({**contrastive, "steps": 5})
    with pytest.raises(ValueError, match="a linear head learns only from cross_entropy"):
        InnerConfig.model_validate({**contrastive, "head": "linear"})
    config = InnerConfig.model_validate({**contrastive, "steps": 2, "steps_by_shots": {1: 0, 2: 2}})
    single = tasks(1, shots=1)
    assert run(tiny, lora, single, config).support_loss.shape == (0, 1)
    with pytest.raises(AdaptationError, match="needs two examples of a class"):
        run(tiny, lora, single, config, steps=2)


@pytest.mark.parametrize("kind", ["token_dropout", "span_mask", "embedding_noise"])
def test_augmented_views_learn_from_one_example_and_do_not_depend_on_other_tasks(tiny64: Base, lora64: LoRA, kind: str) -> None:
    config = InnerConfig.model_validate(
        {
            "objective": {"supervised_contrastive": 1.0},
            "head": "prototypes",
            "optimizer": "sgd",
            "steps": 2,
            "augmentation": {"kind": kind, "strength": 0.4 if kind != "embedding_noise" else 5.0, "views": 3},
        }
    )
    support = [tasks(3, ways=3, shots=1)[0], tasks(3, ways=2, shots=1)[1]]
    together = run(tiny64, lora64, support, config)
    start_delta = stack(start(lora64).theta, 2)
    assert any(not torch.equal(together.delta[n], start_delta[n]) for n in start_delta)
    for t, pairs in enumerate(support):
        torch.testing.assert_close(flat(together, t), flat(run(tiny64, lora64, [pairs], config), 0), rtol=1e-8, atol=1e-9)
    other = run(tiny64, lora64, support, config, seed=1)
    assert not torch.equal(flat(together, 0), flat(other, 0))
    larger = tasks(1, shots=2)
    plain = config.model_copy(update={"augmentation": None})
    torch.testing.assert_close(
        flat(run(tiny64, lora64, larger, config), 0), flat(run(tiny64, lora64, larger, plain, steps=2), 0), rtol=0, atol=0
    )


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_tasks_of_unequal_sizes_in_one_pass_equal_single_tasks(tiny64: Base, lora64: LoRA, optimizer: str) -> None:
    support = [tasks(3, ways=3, shots=2)[0], tasks(3, ways=2, shots=1)[1], tasks(3, ways=3, shots=3)[2]]
    # Adam divides by the size of the gradient, so small gradients would magnify rounding errors. An ε well above those errors
    # prevents this.
    config = InnerConfig.model_validate({"steps": 3, "optimizer": optimizer, "epsilon": 1e-4})
    together = run(tiny64, lora64, support, config)
    for t, pairs in enumerate(support):
        torch.testing.assert_close(flat(together, t), flat(run(tiny64, lora64, [pairs], config), 0), rtol=1e-9, atol=1e-10)


def test_first_and_second_order_give_the_same_adapted_parameters(tiny64: Base, lora64: LoRA) -> None:
    config = InnerConfig(steps=3)
    first, second = (run(tiny64, lora64, tasks(2), config, order=order) for order in ("first", "second"))
    torch.testing.assert_close(flat(first, 1), flat(second, 1), rtol=1e-12, atol=1e-13)


def test_steps_lower_the_support_loss(tiny: Base, lora: LoRA) -> None:
    losses = run(tiny, lora, tasks(2), InnerConfig(steps=10), outer=start(lora, torch.float32, 0.01)).support_loss
    assert losses.shape == (10, 2)
    assert (losses[-1] < losses[0]).all()


def test_large_support_sets_are_taken_in_seeded_parts(tiny: Base, lora: LoRA) -> None:
    support = tasks(1, ways=4, shots=4)
    config = InnerConfig(steps=6, rows_per_step=5)
    one, same, other = (flat(run(tiny, lora, support, config, seed=seed), 0) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    whole = flat(run(tiny, lora, support, InnerConfig(steps=0, rows_per_step=5)), 0)
    assert torch.equal(whole, flat(run(tiny, lora, support, InnerConfig(steps=0)), 0))


def test_second_order_is_refused_on_fused_attention(tiny: Base, lora: LoRA) -> None:
    with pytest.raises(ValueError, match="eager"):
        run(tiny, lora, tasks(1), InnerConfig(steps=1), order="second")


def test_the_deadline_is_checked_between_steps(tiny: Base, lora: LoRA) -> None:
    with pytest.raises(DeadlineExceeded, match="after 0 of 5 steps"):
        run(tiny, lora, tasks(1), InnerConfig(steps=5), deadline=time.monotonic() - 1)


def test_a_loss_that_is_not_finite_is_refused(tiny: Base, lora: LoRA) -> None:
    outer = start(lora, torch.float32)
    theta = {n: torch.full_like(t, float("nan")) for n, t in outer.theta.items()}
    with pytest.raises(NonFinite, match="inner step 0"):
        run(tiny, lora, tasks(1), InnerConfig(steps=2), outer=replace(outer, theta=theta))
