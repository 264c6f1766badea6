"""Several support sets adapted in one batched inner loop give the same results as each one alone."""

import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metatrain.artifacts.baselines import lora_from_zero
from metatrain.deltas import BottleneckConfig, HeadConfig, IA3Config, LoRAConfig, PrefixConfig, PromptConfig
from metatrain.errors import DeadlineExceeded, NonFinite
from metatrain.inner.config import HardSteps, InnerConfig
from metatrain.inner.encoded import Encoded
from metatrain.inner.loop import trajectory
from metatrain.inner.problem import Outer, start_rates
from metatrain.inner.supervised import Supervised
from metatrain.inner.together import Ended, adapt_each
from metatrain.models.base import Base
from metatrain.models.inputs.augment import Augmentation
from metatrain.readouts.classes import ClassReadout
from metatrain.readouts.label_words import LEAST_GAIN
from tests.tiny import WORDS, rows_through

CONTRASTIVE: dict[str, Any] = {"objective": {"supervised_contrastive": 1.0}, "head": "prototypes", "steps_by_shots": {1: 0, 2: 2}}
CONFIGS = {
    "cross-entropy": InnerConfig(),
    "momentum": InnerConfig(optimizer="momentum"),
    "contrastive": InnerConfig(**CONTRASTIVE, head_steps=3, steps=2),
    "leave-one-out": InnerConfig(**{**CONTRASTIVE, "objective": {"leave_one_out": 1.0, "cross_entropy": 0.5}}, steps=2),
    "hard steps": InnerConfig(**CONTRASTIVE, steps=2, hard_steps=HardSteps(shots=2, below=0.5, steps=4)),
    "head alone": InnerConfig(moved="head"),
    "proximal": InnerConfig(proximal=0.5),
}
DELTAS: dict[str, Any] = {
    "lora": LoRAConfig(rank=2, alpha=4),
    "upper": LoRAConfig(rank=2, alpha=4, layers=(1,)),
    "bottleneck": BottleneckConfig(rank=3),
    "ia3": IA3Config(),
    "prefix": PrefixConfig(tokens=3),
    "prompt": PromptConfig(tokens=3),
    "head": HeadConfig(),
}
PAIRS = (
    [("lora", c) for c in CONFIGS] + [(d, "contrastive") for d in DELTAS if d not in ("lora", "head")] + [("head", "head alone")]
)
Sizes = st.lists(st.tuples(st.integers(2, 4), st.integers(2, 3), st.one_of(st.none(), st.integers(1, 4))), min_size=2, max_size=5)


def pairs(classes: int, shots: int, seed: int) -> list[tuple[str, int]]:
    words, built = WORDS.split(), []
    for c in range(classes):
        for k in range(shots):
            start = 5 * seed + 11 * c + 3 * k
            built.append((" ".join(words[(start + i) % len(words)] for i in range(1 + (seed + c + 2 * k) % 9)), c))
    return built


def outer(base: Base, delta: Any, config: InnerConfig) -> Outer:
    theta = base.attach(delta).initial(torch.Generator().manual_seed(0), b_std=0.05)
    leaves = [*({} if config.moved == "head" else theta), "head.weight", "head.bias"]
    rate = 0.003 if config.optimizer == "adam" else 0.02
    return Outer(theta, start_rates(leaves, rate), torch.tensor(8.0))


def adapt(
    base: Base, delta: Any, config: InnerConfig, supports: list[list[tuple[str, int]]], steps: list[int | None], **options: Any
) -> list[Ended | DeadlineExceeded]:
    tasks = Supervised(base, base.attach(delta), ClassReadout, config, Encoded(base).support(supports), steps=steps, serving=True)
    return adapt_each(tasks, outer(base, delta, config), config.update, **options)


def assert_close(left: Ended | DeadlineExceeded, right: Ended | DeadlineExceeded) -> None:
    assert isinstance(left, Ended) and isinstance(right, Ended)
    leaves = [{**ended.delta, **ended.answering} for ended in (left, right)]
    assert leaves[0].keys() == leaves[1].keys() and leaves[0]["head.weight"].shape == leaves[1]["head.weight"].shape
    for name, leaf in leaves[0].items():
        torch.testing.assert_close(leaf, leaves[1][name], rtol=2e-3, atol=2e-4)  # Adam divides by gradients that can be small
    assert left.losses == pytest.approx(right.losses, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("delta", "config"), PAIRS)
@pytest.mark.parametrize("examples", [4, pytest.param(20, marks=pytest.mark.long)])
def test_each_task_gives_the_result_that_it_gives_alone(tiny: Base, delta: str, config: str, examples: int) -> None:
    """Draw tasks with different numbers of classes, shots and steps, and texts of different lengths.

    If a task's number of steps is None, the configuration's number is used.
    """
    inner = CONFIGS[config]

    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(Sizes)
    def check(sizes: list[tuple[int, int, int | None]]) -> None:
        supports = [pairs(classes, shots, seed) for seed, (classes, shots, _) in enumerate(sizes)]
        steps = [task_steps for _, _, task_steps in sizes]
        together = adapt(tiny, DELTAS[delta], inner, supports, steps)
        for support, task_steps, found in zip(supports, steps, together, strict=True):
            assert_close(found, adapt(tiny, DELTAS[delta], inner, [support], [task_steps])[0])

    check()


@pytest.mark.parametrize("config", CONFIGS)
def test_tasks_without_steps_share_a_pass_with_others(tiny: Base, config: str) -> None:
    supports, delta = [pairs(3, 2, 0), pairs(2, 3, 1), pairs(2, 2, 2)], DELTAS["head" if config == "head alone" else "lora"]
    tried: list[list[int | None]] = [[0, 0, 0], [0, 2, 1], [3, 0, 3]]
    for steps in tried:
        for support, number, found in zip(supports, steps, adapt(tiny, delta, CONFIGS[config], supports, steps), strict=True):
            assert_close(found, adapt(tiny, delta, CONFIGS[config], [support], [number])[0])


@pytest.mark.parametrize("delta", ["lora", "upper", "prefix"])
@pytest.mark.parametrize("config", ["cross-entropy", "contrastive", "hard steps", "leave-one-out"])
def test_optional_rows_are_used_or_left_out_as_the_readout_decides(tiny: Base, delta: str, config: str) -> None:
    """Compare tasks with optional rows to tasks that have them as examples, or not at all."""
    supports = [
        pairs(classes, shots, seed) for seed, (classes, shots) in enumerate([(3, 1), (2, 3), (2, 1), (4, 2), (3, 1), (2, 2)])
    ]
    # Those of every second task are words of its own examples, those of the others belong to the next class.
    words = []
    for seed, pairs_of_task in enumerate(supports):
        text_of, classes = {c: text for text, c in pairs_of_task}, 1 + max(c for _, c in pairs_of_task)
        words.append([(f"{text_of[(c + seed % 2) % classes]} {WORDS.split()[7 * c + seed]}", c) for c in range(classes)])
    optional, kind = [len(rows) for rows in words[:-1]] + [0], tiny.attach(DELTAS[delta])
    rows = Encoded(tiny).support(
        [pairs + more for pairs, more in zip(supports[:-1], words, strict=False)] + supports[-1:], optional
    )
    tasks = Supervised(tiny, kind, ClassReadout, CONFIGS[config], rows, serving=True)
    found = adapt_each(tasks, outer(tiny, DELTAS[delta], CONFIGS[config]), CONFIGS[config].update)
    decisions = []
    for support, more, result in zip(supports, words, found, strict=True):
        assert isinstance(result, Ended) and result.decided is not None
        used, evidence = result.decided
        decisions.append(used)
        assert used == (evidence is not None and evidence > LEAST_GAIN)
        assert_close(result, adapt(tiny, DELTAS[delta], CONFIGS[config], [support + more if used else support], [None])[0])
    assert {True, False} == set(decisions)


def test_a_task_left_without_steps_by_its_decision_shares_a_pass_with_others(tiny: Base) -> None:
    """Give one task of one-shot classes helpful words and the other one words of each other's classes.

    The contrastive objective cannot learn from the second one, which takes no step.
    """
    support, config = pairs(2, 1, 0), CONFIGS["contrastive"]
    words = [[(f"{text} {WORDS.split()[-1]}", c if own else 1 - c) for text, c in support] for own in (True, False)]
    rows = Encoded(tiny).support([support + sorted(more, key=lambda pair: pair[1]) for more in words], [2, 2])
    tasks = Supervised(tiny, tiny.attach(DELTAS["lora"]), ClassReadout, config, rows, serving=True)
    helped, not_helped = adapt_each(tasks, outer(tiny, DELTAS["lora"], config), config.update)
    assert isinstance(helped, Ended) and isinstance(not_helped, Ended)
    assert (len(helped.losses), len(not_helped.losses)) == (2, 0)
    assert_close(not_helped, adapt(tiny, DELTAS["lora"], config, [support], [None])[0])


def test_a_decision_against_words_leaves_the_augmentation_of_the_examples(tiny: Base) -> None:
    """Augment sets of one example a class, which have two with the words."""
    config = InnerConfig(steps=2, augmentation=Augmentation(kind="token_dropout", strength=0.3, views=2, up_to_shots=1))
    support = pairs(2, 1, 0)
    words = sorted([(f"{text} {WORDS.split()[-1]}", 1 - c) for text, c in support], key=lambda pair: pair[1])
    rows = Encoded(tiny).support([support + words], [2])
    tasks = Supervised(tiny, tiny.attach(DELTAS["lora"]), ClassReadout, config, rows, serving=True)
    (found,) = adapt_each(tasks, outer(tiny, DELTAS["lora"], config), config.update)
    assert isinstance(found, Ended) and found.decided is not None and not found.decided[0]
    assert_close(found, adapt(tiny, DELTAS["lora"], config, [support], [None])[0])


# In each step, all unfinished tasks are padded to the largest of them. That is three tasks of 9 rows, then two of 9, then one of 6,
# twice. With prototypes, the head of a task that leaves needs the features of its own rows, 4, 9 and 6.
@pytest.mark.parametrize(("config", "expected"), [("contrastive", 27 + 4 + 18 + 9 + 6 + 6 + 6), ("proximal", 27 + 18 + 6 + 6)])
def test_a_finished_task_leaves_the_pass(tiny: Base, config: str, expected: int) -> None:
    supports = [pairs(2, 2, 0), pairs(2, 3, 1), pairs(3, 3, 2)]
    with rows_through(tiny) as rows:
        adapt(tiny, DELTAS["lora"], CONFIGS[config], supports, [1, 4, 2])
    assert sum(rows) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("contrastive", ["step 0 1 2", "end 0", "step 1 2", "end 2", "step 1", "step 1", "end 1"]),
        ("head alone", ["step 0 1 2", "step 1 2", "step 1", "step 1", "end 0", "end 1", "end 2"]),
    ],
)
def test_a_task_ends_right_after_its_last_step_if_it_can_be_separated(tiny: Base, config: str, expected: list[str]) -> None:
    supports, events, ended = [pairs(2, 2, 0), pairs(2, 3, 1), pairs(3, 3, 2)], [], {}
    delta = DELTAS["head" if config == "head alone" else "lora"]

    def on_step(losses: dict[int, float]) -> None:
        events.append(" ".join(["step", *map(str, losses)]))

    def on_ended(task: int, result: Ended | DeadlineExceeded) -> None:
        events.append(f"end {task}")
        ended[task] = result

    made = adapt(tiny, delta, CONFIGS[config], supports, [1, 4, 2], on_step=on_step, on_ended=on_ended)
    assert events == expected
    assert [ended[task] for task in range(3)] == made


# Only the second of the two layers has the delta, so the first one runs once. Without steps, the head is that of the first pass.
# With steps, the first one shares the pass of the start, and a head of prototypes needs one more pass.
@pytest.mark.parametrize(
    ("config", "shots", "steps", "passes"), [("contrastive", 1, 0, 1), ("contrastive", 2, 2, 3), ("proximal", 1, 5, 5)]
)
def test_an_adapter_takes_no_forward_pass_that_it_does_not_need(
    tiny: Base, config: str, shots: int, steps: int, passes: int
) -> None:
    kind, layers = tiny.attach(DELTAS["upper"]), tiny.model.encoder.layer  # type: ignore[union-attr]
    tiny.backbone.below(tiny.collate(tiny.inputs.sample()[:2]), kind)  # checks the model once, which takes passes of its own
    through: list[int] = []
    hooks = [layer.register_forward_hook(lambda *_, number=n: through.append(number)) for n, layer in enumerate(layers)]  # type: ignore
    (ended,) = adapt(tiny, DELTAS["upper"], CONFIGS[config], [pairs(3, shots, 0)], [None])
    for hook in hooks:
        hook.remove()
    assert isinstance(ended, Ended) and len(ended.losses) == steps
    assert through == [0, *[1] * passes]


@pytest.mark.parametrize("steps", [[1, 4, 2], [3, 3, 3]])
def test_the_layers_below_the_delta_run_once_even_if_tasks_leave(tiny: Base, steps: list[int | None]) -> None:
    supports = [pairs(2, 2, 0), pairs(2, 3, 1), pairs(3, 3, 2)]
    tiny.backbone.below(tiny.collate(tiny.inputs.sample()[:2]), tiny.attach(DELTAS["upper"]))  # checks the model once
    through: list[int] = []
    hook = tiny.model.get_submodule("encoder.layer.0").register_forward_hook(lambda *_: through.append(0))
    adapt(tiny, DELTAS["upper"], CONFIGS["contrastive"], supports, steps)
    hook.remove()
    assert len(through) == 1


def test_an_adapter_without_steps_has_no_graph_and_no_moments(tiny: Base) -> None:
    delta, config = DELTAS["lora"], CONFIGS["contrastive"]
    support = Encoded(tiny).support([pairs(3, 1, 0)])
    tasks = Supervised(tiny, tiny.attach(delta), ClassReadout, config, support, serving=True)
    (point,) = trajectory(tasks, outer(tiny, delta, config), config.update)
    assert point.moments == {} and not any(leaf.requires_grad for leaf in point.phi.values())


def test_a_loss_that_is_not_finite_later_takes_nothing_from_a_task_that_has_ended(tiny: Base) -> None:
    """Let the second task diverge after the first one has taken its only step."""
    supports, delta, config = [pairs(2, 2, 0), pairs(2, 3, 1)], DELTAS["lora"], CONFIGS["contrastive"]
    tasks = Supervised(tiny, tiny.attach(delta), ClassReadout, config, Encoded(tiny).support(supports), steps=[1, 3], serving=True)
    fine, ended = outer(tiny, delta, config), []
    rates = {n: torch.tensor([r[0], torch.inf if n in fine.theta else r[0]]) for n, r in fine.rates.items()}
    with pytest.raises(NonFinite, match="at inner step 2"):
        adapt_each(tasks, Outer(fine.theta, rates, fine.scale), config.update, on_ended=lambda *call: ended.append(call))
    ((task, result),) = ended
    assert task == 0 and isinstance(result, Ended) and len(result.losses) == 1


def test_only_unfinished_tasks_miss_a_deadline(tiny: Base) -> None:
    supports, delta, config = [pairs(2, 2, 0), pairs(2, 2, 1), pairs(3, 2, 2)], DELTAS["lora"], CONFIGS["contrastive"]
    deadline = time.monotonic() + 3
    reported: list[dict[int, float]] = []

    def on_step(losses: dict[int, float]) -> None:
        reported.append(losses)
        if len(reported) == 2:
            time.sleep(max(0.0, deadline + 0.01 - time.monotonic()))

    first, late, second = adapt(tiny, delta, config, supports, [1, 4, 2], deadline=deadline, on_step=on_step)
    assert str(late) == "the inner loop passed its deadline after 2 of 4 steps"
    assert_close(first, adapt(tiny, delta, config, [supports[0]], [1])[0])
    assert_close(second, adapt(tiny, delta, config, [supports[2]], [2])[0])
    assert [sorted(losses) for losses in reported] == [[0, 1, 2], [1, 2]]


def test_a_loss_that_is_not_finite_fails_the_whole_pass(tiny: Base) -> None:
    init = lora_from_zero(tiny)
    diverging = Outer(init.theta, {name: torch.full_like(rate, 1e38) for name, rate in init.rates.items()}, torch.tensor(16.0))
    support = Encoded(tiny).support([pairs(2, 2, 0), pairs(3, 2, 1)])
    tasks = Supervised(tiny, tiny.attach(init.delta), ClassReadout, init.inner, support, steps=[3, 2], serving=True)
    with pytest.raises(NonFinite):
        adapt_each(tasks, diverging, init.inner.update)
