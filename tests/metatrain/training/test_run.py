"""Whole training runs on the tiny model and the shipped task set."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

from metatrain.artifacts.initialization import load_initialization
from metatrain.cli import main
from metatrain.errors import DataError
from metatrain.inner.encoded import Encoded
from metatrain.inner.loop import adapt
from metatrain.inner.problem import stack
from metatrain.inner.supervised import Supervised
from metatrain.meta.algorithms.imaml import Proximal
from metatrain.models.base import Base
from metatrain.models.loading import load_base
from metatrain.readouts.classes import ClassReadout
from metatrain.training.data import read_data
from metatrain.training.history import read_history
from metatrain.training.outer_step import CHECKPOINT
from metatrain.training.recipe import Recipe
from metatrain.training.run import train
from tests.metatrain.training.plans import content, recipe
from tests.tiny import tasks
from tests.warm import warm

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    "algorithm",
    [
        {"name": "fomaml"},
        {"name": "maml", "multi_step": 4, "annealed": 2, "learned": ["theta", "rates"]},
        {"name": "metasgd", "gradient": {"mode": "auto"}},
        {"name": "anil"},
        {"name": "reptile"},
        {"name": "imaml", "strength": 5.0, "gradient": {"damping": 20.0}},
        {"name": "maml", "gradient": {"mode": "adjoint", "product": "central"}},
        {"name": "protonet"},
        {"name": "adapted_protonet"},
    ],
    ids=lambda section: " ".join([section["name"], section.get("gradient", {}).get("mode", "")]),
)
def test_a_resumed_run_gives_the_same_bits(tiny_folder: Path, tmp_path: Path, algorithm: dict[str, Any]) -> None:
    """Use LoRA on several modules, whose order in a checkpoint differs from their order in the model."""
    delta = {"rank": 2, "targets": ["value", "query", "intermediate.dense"]}
    outer = {"steps": 6, "tasks": 2, "warmup": 2, "average": 0.5}
    validation = {"every": 3, "episodes": 2, "ways": 3, "shots": [1, 2]}
    plan = recipe(tiny_folder, algorithm=algorithm, delta=delta, outer=outer, validation=validation)
    uninterrupted = train(plan, Path(), tmp_path / "uninterrupted")
    for steps in (2, 3):  # the second time, it stops right after a validation
        train(plan, Path(), tmp_path / "resumed", max_steps=steps)
    resumed = train(plan, Path(), tmp_path / "resumed")
    assert resumed.digest == uninterrupted.digest
    histories = [(tmp_path / name / "history.jsonl").read_bytes() for name in ("resumed", "uninterrupted")]
    assert histories[0] == histories[1]


def test_the_written_initialization_loads_with_its_provenance(tiny_folder: Path, tiny: Base, tmp_path: Path) -> None:
    plan = recipe(tiny_folder)
    events: list[dict[str, Any]] = []
    trained = train(plan, Path(), tmp_path, on_event=events.append)
    loaded = load_initialization(tmp_path / "tiny", tiny)
    assert loaded.digest == trained.digest
    assert loaded.provenance["recipe_digest"] == plan.digest
    assert loaded.provenance["training_sets"] == {"starter_intents": {"classes": 8, "texts": 112}}
    assert [e["step"] for e in events if e["event"] == "validation"] == [0, 4, 8]
    assert trained.provenance["outer_steps"] in (0, 4, 8)


def test_imaml_records_its_proximal_term_for_serving(tiny_folder: Path, tmp_path: Path) -> None:
    algorithm = {"name": "imaml", "strength": 5.0, "gradient": {"damping": 20.0}}
    trained = train(recipe(tiny_folder, algorithm=algorithm, outer={"steps": 2, "tasks": 1}), Path(), tmp_path)
    assert trained.inner.proximal == 5.0
    base = load_base(str(tiny_folder), precision="float32", attention="eager")
    kind, support = base.attach(trained.delta), Encoded(base).support(tasks(1))
    without_proximal = trained.inner.model_copy(update={"proximal": 0.0})
    distances = []
    for inner in (trained.inner, without_proximal):
        classified = Supervised(base, kind, ClassReadout, inner, support, steps=20, serving=True)
        outer = trained.outer(base.device)
        end = adapt(classified, outer, inner.update)
        delta, begin = classified.adapted(end.phi, outer, 20).delta, stack(outer.theta, 1)
        distances.append(float(torch.stack([(leaf - begin[name]).square().sum() for name, leaf in delta.items()]).sum()))
        if inner is trained.inner:
            proximal = Proximal(Supervised(base, kind, ClassReadout, without_proximal, support, steps=20), 5.0)
            for name, leaf in adapt(proximal, outer, inner.update).phi.items():
                torch.testing.assert_close(leaf, end.phi[name])
    assert distances[0] < 0.9 * distances[1]


def test_a_checkpoint_of_another_recipe_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    train(recipe(tiny_folder), Path(), tmp_path, max_steps=1)
    fewer = {**content(tiny_folder)["data"], "train": [{"path": "starter", "labels": ["gym_membership/*"]}]}
    for other in (recipe(tiny_folder, seed=1), recipe(tiny_folder, data=fewer)):
        with pytest.raises(DataError, match="belongs to another recipe, version, base model or data"):
            train(other, Path(), tmp_path)


def test_training_stops_when_validation_no_longer_improves(tiny_folder: Path, tmp_path: Path) -> None:
    """Train with a tiny learning rate: no prediction changes, so the first validation stays the best."""
    outer = {"steps": 40, "tasks": 1, "learning_rate": 1e-12, "rate_learning_rate": 1e-12}
    validation = {"every": 2, "episodes": 2, "ways": 3, "shots": [1], "patience": 3}
    trained = train(recipe(tiny_folder, outer=outer, validation=validation), Path(), tmp_path)
    steps = [event["step"] for event in read_history(tmp_path)]
    assert max(steps) == 6
    assert trained.provenance["outer_steps"] == 0


def test_adapted_protonet_with_many_options_trains_and_records_its_inner_loop(tiny_folder: Path, tmp_path: Path) -> None:
    inner = {"objective": {"supervised_contrastive": 1, "leave_one_out": 0.5}, "head": "prototypes", "steps": 3}
    inner |= {"steps_by_shots": {1: 0, 3: 3}, "optimizer": "momentum"}
    algorithm = {"name": "adapted_protonet"}
    episodes = {"ways": [2, 3], "shots": [1, 4], "queries": 2, "near_miss": 0.5, "merge": 0.3, "rows": 60}
    outer = {"steps": 6, "tasks": 3, "anchor": 0.5}
    plan = recipe(tiny_folder, algorithm=algorithm, inner=inner, episodes=episodes, outer=outer, start={"rates_by_step": True})
    trained = train(plan, Path(), tmp_path)
    assert trained.inner == plan.inner and {rate.shape for rate in trained.rates.values()} == {(3,)}
    base = load_base(str(tiny_folder), precision="float32")
    loaded = load_initialization(tmp_path / "tiny", base)
    assert loaded.digest == trained.digest
    assert [loaded.inner.steps_for(n, 2) for n in (2, 4, 6)] == [0, 0, 3]


def test_options_for_serving_are_recorded_and_do_not_change_training(tiny_folder: Path, tmp_path: Path) -> None:
    """Add `hard_steps` and `in_parts`, which only serving uses."""
    inner = {"objective": {"supervised_contrastive": 1}, "head": "prototypes", "steps": 2, "steps_by_shots": {1: 0, 2: 2}}
    inner |= {"rows_per_step": 5}
    algorithm = {"name": "adapted_protonet"}
    more = {"hard_steps": {"shots": 2, "below": 1, "steps": 9}, "in_parts": {"objective": {"cross_entropy": 1}, "most": 9}}
    episodes = {"ways": [3, 3], "shots": [2, 4], "queries": 2}
    with_more, without = (
        train(recipe(tiny_folder, algorithm=algorithm, inner=options, episodes=episodes), Path(), tmp_path / name)
        for name, options in (("more", inner | more), ("less", inner))
    )
    assert with_more.inner.in_parts is not None and with_more.inner.meta_trained == without.inner
    assert all(torch.equal(with_more.theta[n], without.theta[n]) for n in without.theta)
    assert with_more.digest != without.digest
    assert with_more.provenance["validation_score"] == without.provenance["validation_score"]


def test_training_lowers_the_query_loss(tiny_folder: Path, tmp_path: Path) -> None:
    outer = {
        "steps": 100,
        "tasks": 4,
        "learning_rate": 3e-2,
        "rate_learning_rate": 5e-2,
        "clip": 1.0,
        "decay": "cosine",
        "warmup": 5,
    }
    validation = {"every": 100, "episodes": 2, "ways": 3, "shots": [1]}
    episodes = {"ways": [4, 4], "shots": [3, 3], "queries": 3, "unequal": 0}
    algorithm = {"name": "protonet", "learned": ["theta", "scale"]}
    plan = recipe(tiny_folder, algorithm=algorithm, episodes=episodes, outer=outer, validation=validation)
    train(plan, Path(), tmp_path)
    losses = [e["loss"] for e in read_history(tmp_path) if e["event"] == "step"]
    assert sum(losses[-15:]) / 15 < 0.9 * sum(losses[:15]) / 15


def test_training_excludes_held_out_and_validation_data(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [("a", f"a {i}") for i in range(20)] + [("b", f"b {i}") for i in range(20)]
    rows += [("c", f"c {i}") for i in range(20)] + [("d", f"d {i}") for i in range(20)] + [("e", f"e {i}") for i in range(20)]
    main_set, twin = tmp_path / "main.jsonl", tmp_path / "twin.jsonl"
    main_set.write_text("\n".join(json.dumps({"label": label, "text": text}) for label, text in rows))
    twin.write_text("\n".join(json.dumps({"label": "b again", "text": f"B {i}!"}) for i in range(20)))
    data = {
        "train": [{"path": "main.jsonl", "labels": ["a", "b"]}],
        "valid": [{"path": "main.jsonl", "labels": ["c", "d", "e"]}],
        "held_out": [{"path": "twin.jsonl"}],
    }
    train_sets, valid_sets, dropped = read_data(recipe(tiny_folder, data=data), tmp_path)
    assert list(train_sets[0].texts) == ["a"]
    assert list(valid_sets[0].texts) == ["c", "d", "e"]
    assert [removal.message_with_example for removal in dropped] == [
        "main/b: class removed: 20 of 20 texts (more than 5 %) are in twin/b again too, so both count as one class; 'b 0' is "
        "'B 0!' there"
    ]
    data["valid"] = [{"path": "main.jsonl", "labels": ["b", "c"]}]
    with pytest.raises(DataError, match=r"data\.train and data\.valid: class 'b' of main is on both sides"):
        read_data(recipe(tiny_folder, data=data), tmp_path)


def test_the_command_trains_and_resumes_and_its_errors_are_one_line(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content(tiny_folder)))
    runner = CliRunner()
    for more in (["--max-steps", "4"], []):
        result = runner.invoke(main, ["train", str(path), "--out", str(tmp_path / "run"), *more])
        assert result.exit_code == 0, result.output
    assert "validation" in result.output and (tmp_path / "run" / "tiny" / "initialization.json").is_file()
    result = runner.invoke(main, ["train", str(tmp_path / "none.yaml")])
    shipped = "those that ship with the package: default, starter"
    assert result.exit_code == 1 and result.output == f"error: no recipe at {tmp_path / 'none.yaml'}; {shipped}\n"
    path.write_text(yaml.safe_dump(content(tiny_folder, validation={"episodes": 2, "ways": 3, "shots": [13]})))
    result = runner.invoke(main, ["train", str(path), "--out", str(tmp_path / "other")])
    assert result.exit_code == 1 and "3-way with 13 shots and 5 queries needs 3 classes of 18 texts; at most 0" in result.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"episodes": {"ways": [2, 4], "shots": [1, 30], "queries": 2}},
            "episodes: 4-way with 13 shots and 2 queries",
        ),
        (
            {"validation": {"ways": 3, "shots": [10]}},
            "validation: of data.valid, starter_intents: 3-way with 10 shots and 5 queries needs 3 classes of 15 texts",
        ),
        (
            {
                "data": {
                    "train": [{"path": "starter", "labels": ["gym_membership/*", "gim_membership/*"]}],
                    "valid": [{"path": "starter", "labels": ["public_library/*"]}],
                }
            },
            "data: starter: labels: none matches 'gim_membership/*'; it has gym_membership/freeze_membership, ",
        ),
    ],
)
def test_too_little_data_is_refused_before_training_starts(
    tiny_folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    events: list[dict[str, Any]] = []
    with pytest.raises(DataError) as error:
        train(recipe(tiny_folder, **change), Path(), tmp_path / "out", on_event=events.append)
    assert str(error.value).startswith(message) and not events and not (tmp_path / "out").exists()


def test_a_checkpoint_ignores_options_at_their_defaults(tiny_folder: Path, tmp_path: Path) -> None:
    outer = {"steps": 8, "tasks": 2, "warmup": 2}
    train(recipe(tiny_folder, outer=outer), Path(), tmp_path, max_steps=2)
    train(recipe(tiny_folder, outer={**outer, "optimizer": "adam"}), Path(), tmp_path, max_steps=3)
    with pytest.raises(DataError, match="belongs to another recipe"):
        train(recipe(tiny_folder, outer={**outer, "optimizer": "sgd"}), Path(), tmp_path)


def test_shipped_recipes_are_found_by_name(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["train", "default", "--data", str(tmp_path)])
    assert result.exit_code == 1 and result.output.startswith(f"error: data: no file at {tmp_path}")
    result = CliRunner().invoke(main, ["train", "standard"])
    shipped = "those that ship with the package: default, starter"
    assert result.exit_code == 1 and result.output == f"error: no recipe at standard; {shipped}\n"


def test_a_killed_and_resumed_run_gives_the_same_bits(tiny_folder: Path, tmp_path: Path) -> None:
    """Send SIGKILL at an arbitrary step after the first checkpoint."""
    outer = {"steps": 20, "tasks": 1, "warmup": 2}
    plan = content(tiny_folder, outer=outer, validation={"every": 3, "episodes": 2, "ways": 3, "shots": [1], "patience": 50})
    uninterrupted = train(Recipe.model_validate(plan), Path(), tmp_path / "uninterrupted")
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    arguments = ["train", str(tmp_path / "plan.yaml"), "--out", str(tmp_path / "killed")]
    process = warm().start("metatrain.cli", *arguments, environment=os.environ, log=tmp_path / "log")
    checkpoint = tmp_path / "killed" / CHECKPOINT
    deadline = time.monotonic() + 120
    while not checkpoint.is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert checkpoint.is_file(), (tmp_path / "log").read_text()
    resumed = train(Recipe.model_validate(plan), Path(), tmp_path / "killed")
    assert resumed.digest == uninterrupted.digest
    histories = [(tmp_path / name / "history.jsonl").read_bytes() for name in ("killed", "uninterrupted")]
    assert histories[0] == histories[1]
