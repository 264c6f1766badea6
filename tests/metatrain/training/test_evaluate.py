"""The scores of initializations compared with those of plain loops, and the command `evaluate`."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from metatrain.artifacts.baselines import frozen_prototypes, lora_from_zero
from metatrain.cli import DEFAULT_INITIALIZATION, main
from metatrain.errors import DataError
from metatrain.inner.config import HardSteps, InnerConfig
from metatrain.models.base import Base
from metatrain.tasks.episodes import Episode, EpisodeSampler, EpisodeShape
from metatrain.tasks.table import STARTER, read_table
from metatrain.training.evaluate import evaluate, evaluate_prototypes, evaluate_steps, own_steps, paired_interval
from tests.tiny import rows_through


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    sampler = EpisodeSampler([read_table(STARTER)], 0)
    return [sampler.episode(i, EpisodeShape(4, 2, 3)) for i in range(7)]


def test_frozen_prototypes_equal_a_loop_over_plain_features(tiny: Base, episodes: list[Episode]) -> None:
    scores = evaluate(tiny, frozen_prototypes(tiny), episodes, together=3)
    for episode, accuracy in zip(episodes, scores.accuracy, strict=True):
        rows = [tiny.features(None, tiny.inputs.collate(tiny.inputs.encode([t])))[0] for t, _ in (*episode.support, *episode.query)]
        shots = torch.stack(rows[:8]).view(4, 2, -1).mean(1)
        cosine = torch.nn.functional.cosine_similarity(torch.stack(rows[8:]).unsqueeze(1), shots.unsqueeze(0), dim=-1)
        hits = sum(int(best) == c for best, (_, c) in zip(cosine.argmax(1), episode.query, strict=True))
        assert accuracy == pytest.approx(hits / 12)


def test_the_number_of_tasks_in_a_pass_does_not_change_the_scores(tiny: Base, episodes: list[Episode]) -> None:
    one, many = (evaluate(tiny, lora_from_zero(tiny), episodes, together=tasks).accuracy for tasks in (1, 7))
    assert one == pytest.approx(many)


def test_the_seconds_of_adaptation_are_within_those_of_the_whole_call(tiny: Base, episodes: list[Episode]) -> None:
    began = time.perf_counter()
    scores = evaluate(tiny, lora_from_zero(tiny), episodes)
    assert 0 < scores.seconds_per_task * len(episodes) <= time.perf_counter() - began


def test_one_run_of_the_loop_scores_every_number_of_steps(tiny: Base, episodes: list[Episode]) -> None:
    by_steps = evaluate_steps(tiny, lora_from_zero(tiny), episodes, (0, 2, 5))
    assert list(by_steps) == [0, 2, 5]
    for steps, scores in by_steps.items():
        assert scores.accuracy == evaluate(tiny, lora_from_zero(tiny), episodes, steps=steps).accuracy
    assert by_steps[0].seconds_per_task < by_steps[2].seconds_per_task < by_steps[5].seconds_per_task


def test_only_hard_support_sets_take_more_steps(tiny: Base, episodes: list[Episode]) -> None:
    inner = InnerConfig(objective={"supervised_contrastive": 1}, head="prototypes", steps=1, steps_by_shots={1: 0, 2: 1})
    init = replace(lora_from_zero(tiny), inner=inner)
    accuracies = [leave_one_out_accuracy(tiny, episode) for episode in episodes]
    below = sum(accuracies) / len(accuracies)
    mixed = init.inner.model_copy(update={"hard_steps": HardSteps(shots=2, below=below, steps=6)})
    hard = [accuracy < below for accuracy in accuracies]
    assert 0 < sum(hard) < len(hard)
    by_steps = evaluate_steps(tiny, init, episodes, (1, 6))
    found = evaluate(tiny, replace(init, inner=mixed), episodes)
    expected = tuple(by_steps[6 if h else 1].accuracy[i] for i, h in enumerate(hard))
    assert found.accuracy == pytest.approx(expected)
    assert found.accuracy != by_steps[1].accuracy
    assert own_steps(tiny, replace(init, inner=mixed), episodes, together=3) == tuple(6 if h else 1 for h in hard)
    assert found.accuracy == pytest.approx(evaluate(tiny, replace(init, inner=mixed), episodes, together=1).accuracy)
    with rows_through(tiny) as mixed_rows:
        evaluate(tiny, replace(init, inner=mixed), episodes)
    with rows_through(tiny) as six_step_rows:
        evaluate(tiny, init, episodes, steps=6)
    assert sum(mixed_rows) < sum(six_step_rows)  # finished tasks are dropped from the batch
    too_few_shots = init.inner.model_copy(update={"hard_steps": HardSteps(shots=3, below=below, steps=6)})
    assert evaluate(tiny, replace(init, inner=too_few_shots), episodes).accuracy == by_steps[1].accuracy
    single = [replace(e, support=e.support[::2]) for e in episodes]
    assert evaluate(tiny, replace(init, inner=mixed), single).accuracy == evaluate(tiny, init, single, steps=0).accuracy


@pytest.mark.parametrize("steps", [0, 6, 7])
def test_hard_steps_must_be_more_than_the_other_steps(steps: int) -> None:
    with pytest.raises(ValueError, match=f"hard_steps.steps: expected more than the {steps} of other support sets"):
        InnerConfig(steps=steps, hard_steps=HardSteps(below=0.8, steps=6))


def leave_one_out_accuracy(tiny: Base, episode: Episode) -> float:
    rows = {text: tiny.features(None, tiny.inputs.collate(tiny.inputs.encode([text])))[0] for text, _ in episode.support}
    hits = []
    for text, label in episode.support:
        others = [torch.stack([rows[t] for t, c in episode.support if c == k and t != text]).sum(0) for k in range(4)]
        similarity = [float(torch.nn.functional.cosine_similarity(rows[text], other, dim=0)) for other in others]
        hits.append(similarity.index(max(similarity)) == label)
    return sum(hits) / len(hits)


def test_zero_steps_of_lora_from_zero_are_frozen_prototypes(tiny: Base, episodes: list[Episode]) -> None:
    assert (
        evaluate(tiny, lora_from_zero(tiny), episodes, steps=0).accuracy
        == evaluate(tiny, frozen_prototypes(tiny), episodes).accuracy
    )


def test_prototypes_with_shared_features_equal_those_of_each_episode(tiny: Base, episodes: list[Episode]) -> None:
    init = lora_from_zero(tiny)
    moved = replace(init, theta={name: leaf + 0.1 for name, leaf in init.theta.items()})
    assert evaluate_prototypes(tiny, moved, episodes) == pytest.approx(evaluate(tiny, moved, episodes, steps=0).accuracy)
    assert evaluate_prototypes(tiny, moved, episodes) != evaluate_prototypes(tiny, init, episodes)


@pytest.mark.parametrize("pairs", [0, 1])
def test_no_interval_follows_from_one_pair(pairs: int) -> None:
    with pytest.raises(DataError, match=f"expected at least 2 paired episodes for an interval, got {pairs}"):
        paired_interval([0.5] * pairs, [0.25] * pairs)


def test_paired_interval_is_the_normal_approximation() -> None:
    mean, half = paired_interval([1.0, 0.5, 0.75], [0.5, 0.5, 0.5])
    assert mean == pytest.approx(0.25)
    assert half == pytest.approx(1.96 * math.sqrt(0.0625 / 3))


def test_the_shipped_default_is_small_and_evaluates_with_its_baselines() -> None:
    """Check only size and a low accuracy bound. Benchmarks and the demo's test measure the accuracy."""
    assert sum(path.stat().st_size for path in DEFAULT_INITIALIZATION.iterdir()) < 2_000_000
    arguments = ["evaluate", "--ways", "5", "--shots", "1", "--episodes", "3", "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    rows = {row["initialization"]: row for row in json.loads(result.stdout)}
    assert set(rows) == {"frozen-prototypes", "lora-from-zero", "default"}
    assert all(row["accuracy"] > 0.5 for row in rows.values())


def test_a_missing_initialization_is_a_one_line_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["evaluate", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr == f"error: {tmp_path}: no initialization.json there\n"
