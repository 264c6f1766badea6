"""Micro-batches: every task has equal weight, and only tasks without a finite gradient are dropped."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metatrain.inner.problem import Outer
from metatrain.inner.supervised import Supervised
from metatrain.meta.algorithms import FOMAML
from metatrain.meta.metagrad import MetaGradient, mean_gradient
from metatrain.models.base import Base
from metatrain.tasks.episodes import Dataset, Episode, EpisodeSampler, EpisodeShape, unequal_shots
from metatrain.training.data import micro_batches, read_data
from metatrain.training.history import read_history
from metatrain.training.run import train
from tests.metatrain.training.plans import recipe

OUTER = {"steps": 3, "tasks": 5, "warmup": 0, "decay": "none", "clip": 1.0}


def test_micro_batches_do_not_change_the_result(tiny_folder: Path, tmp_path: Path) -> None:
    """Compare runs with five tasks per micro-batch, with two tasks, and with one task split into parts.

    The results must agree up to rounding.
    """
    runs = []
    for rows in (400, 30, 4):
        plan = recipe(tiny_folder, outer={**OUTER, "rows_at_once": rows}, episodes={"ways": [3, 3], "shots": [2, 2], "queries": 2})
        runs.append(train(plan, Path(), tmp_path / str(rows)))
    histories = [[e for e in read_history(tmp_path / str(rows)) if e["event"] == "step"] for rows in (400, 30, 4)]
    for run, history in zip(runs[1:], histories[1:], strict=True):
        for name, leaf in runs[0].theta.items():
            torch.testing.assert_close(run.theta[name], leaf, rtol=1e-3, atol=2e-5)
        for event, expected in zip(history, histories[0], strict=True):
            assert event["tasks"] == expected["tasks"] == 5 and event["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_a_meta_batch_is_split_into_micro_batches_that_fit() -> None:
    episode = Episode("d", ("a", "b"), (("x", 0), ("y", 1)), (("z", 0),))
    assert [len(batch) for batch in micro_batches([episode] * 5, 7)] == [2, 2, 1]
    assert [len(batch) for batch in micro_batches([episode] * 3, 2)] == [1, 1, 1]
    assert [len(batch) for batch in micro_batches([episode] * 3, 100)] == [3]


def test_the_mean_is_weighted_by_tasks() -> None:
    parts = [
        (MetaGradient(1.0, 0.5, (2.0, 4.0), {"theta.a": torch.tensor([1.0])}, residual=0.1, mode="implicit", left=0.5), 3),
        (MetaGradient(5.0, 1.0, (6.0, 0.0), {"theta.a": torch.tensor([9.0])}, residual=0.3, mode="implicit", left=0.2), 1),
    ]
    found = mean_gradient(parts)
    assert (found.loss, found.accuracy, found.support_loss) == (2.0, 0.625, (3.0, 3.0))
    torch.testing.assert_close(found.gradients["theta.a"], torch.tensor([3.0]))
    assert (found.residual, found.left, found.mode) == (0.3, 0.5, "implicit")


@pytest.mark.parametrize("broken", [(1,), (0, 4), (0, 1, 2, 3, 4)])
def test_a_task_without_a_finite_loss_is_dropped_and_counted(
    tiny_folder: Path, tiny: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: tuple[int, ...]
) -> None:
    """Set the query losses of some tasks to NaN. The outer step uses the mean of the other tasks."""
    plan = recipe(tiny_folder, outer={**OUTER, "steps": 1}, episodes={"ways": [3, 3], "shots": [2, 2], "queries": 2, "unequal": 0})
    episodes = EpisodeSampler(read_data(plan, Path())[0], plan.seed).batch(0, EpisodeShape(3, 2, 2), 5)
    bad = [row.ids for row in tiny.inputs.encode([episodes[i].support[0][0] for i in broken])]
    judged = Supervised.judged

    def with_nan(tasks: Supervised, adapted: Any, outer: Outer) -> tuple[torch.Tensor, torch.Tensor]:
        loss, score = judged(tasks, adapted, outer)
        width = tasks.support.targets.shape[1]
        is_bad = [not tasks.serving and tasks.support.rows[t * width].ids in bad for t in range(tasks.count)]
        return loss.masked_fill(torch.tensor(is_bad), math.nan), score

    monkeypatch.setattr(Supervised, "judged", with_nan)
    train(plan, Path(), tmp_path)
    (event,) = [e for e in read_history(tmp_path) if e["event"] == "step"]
    assert event["dropped"] == len(broken) and event["tasks"] == 5 - len(broken)
    assert event["skipped"] == (len(broken) == 5) and ("loss" in event) == (len(broken) < 5)
    if len(broken) < 5:
        assert math.isfinite(event["loss"]) and math.isfinite(event["gradient_norm"])


def test_an_algorithm_reports_which_leaves_it_learns() -> None:
    assert FOMAML().learns("theta.a") and not FOMAML().learns("log_rates.a") and not FOMAML().learns("log_scale")
    assert FOMAML().learns("base.a") and FOMAML(learned=("theta", "rates")).learns("log_rates.head.weight")


def test_unequal_shots_stay_within_bounds_and_keep_their_sum() -> None:
    most = [9, 3, 30, 1]
    draws = [unequal_shots(12, most, np.random.default_rng(seed)) for seed in range(200)]
    assert all(sum(shots) == 12 and all(1 <= n <= m for n, m in zip(shots, most, strict=True)) for shots in draws)
    assert len({tuple(shots) for shots in draws}) > 15 and max(shots[2] for shots in draws) >= 9


def test_unequal_shots_of_merged_classes_fit_the_smaller_class() -> None:
    """Merge classes of 6 and 40 texts, from which a label takes its texts in turn."""
    sizes = {label: 6 if number % 2 else 40 for number, label in enumerate("abcdefgh")}
    dataset = Dataset("d", {label: tuple(f"{label} {i}" for i in range(size)) for label, size in sizes.items()})
    sampler = EpisodeSampler([dataset], 0, merge=1.0, unequal=1.0)
    for index in range(100):
        episode = sampler.episode(index, EpisodeShape(3, 4, 2))
        texts = [text for text, _ in (*episode.support, *episode.query)]
        assert len(texts) == len(set(texts)) == 3 * (4 + 2)
        for number, label in enumerate(episode.labels):
            smaller = min(sizes[part] for part in label.split(" + "))
            assert 1 <= sum(row == number for _, row in episode.support) <= smaller - 2


def test_a_share_of_the_episodes_has_unequal_shots() -> None:
    dataset = Dataset("d", {label: tuple(f"{label} {i}" for i in range(20)) for label in "abcdef"})
    sampler = EpisodeSampler([dataset], 3, unequal=0.25)
    unequal = []
    for index in range(200):
        episode = sampler.episode(index, EpisodeShape(4, 5, 2))
        shots = [sum(label == c for _, label in episode.support) for c in range(4)]
        assert sum(shots) == 20 and min(shots) >= 1
        assert [sum(label == c for _, label in episode.query) for c in range(4)] == [2] * 4
        assert not {text for text, _ in episode.support} & {text for text, _ in episode.query}
        unequal.append(shots != [5] * 4)
    assert 0.15 < sum(unequal) / 200 < 0.35
    equal = EpisodeSampler([dataset], 3)
    assert all(
        len({sum(label == c for _, label in equal.episode(i, EpisodeShape(4, 5, 2)).support) for c in range(4)}) == 1
        for i in range(20)
    )
