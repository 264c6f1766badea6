"""No recipe option is ignored: a changed value is refused, or it changes the result of the run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from metatrain.meta.algorithms.config import AlgorithmConfig
from metatrain.training.history import NAME
from metatrain.training.outer_step import CHECKPOINT
from metatrain.training.recipe import Recipe
from metatrain.training.run import train
from tests.metatrain.test_options import ALGORITHMS
from tests.metatrain.training.plans import content

# Options whose effect a run of two outer steps cannot show. Each value gives the reason, or the test that covers the option.
NOT_LEARNED = {
    "outer.steps": "the length of the run",
    "outer.rows_at_once": "memory; tests/metatrain/training/test_meta_batches.py",
    "outer.most_skipped": "needs steps that fail; tests/metatrain/training/test_outer_step.py",
    "outer.base_learning_rate": "refused without base.updated; tests/metatrain/training/test_base_update.py",
    "inner.hard_steps": "for requests; tests/oracles/test_inner.py",
    "inner.in_parts": "for requests; tests/oracles/test_inner.py",
    "episodes.temperature": "needs two data sets; tests/metatrain/tasks",
    "algorithm.name": "another algorithm",
}
# ProtoNet trains without inner steps. Its initialization records these options only for requests that ask for steps.
OF_STEPS = {
    "objective",
    "head",
    "head_steps",
    "optimizer",
    "rows_per_step",
    "beta1",
    "beta2",
    "epsilon",
    "augmentation",
    "proximal",
    "moved",
}
OTHER_VALUES: dict[str, Any] = {
    "algorithm.annealed": 1,
    "algorithm.multi_step": 2,
    "algorithm.rates": "leaf",
    "algorithm.strength": 7.0,
    "inner.objective": {"cross_entropy": 1.0, "supervised_contrastive": 0.5},
    "inner.head": "prototypes",
    "inner.head_steps": 3,
    "inner.optimizer": "momentum",
    "inner.steps": 3,
    "inner.steps_by_shots": {2: 3},
    "inner.rows_per_step": 4,
    "inner.beta1": 0.5,
    "inner.beta2": 0.5,
    "inner.epsilon": 0.1,
    "inner.augmentation": {"kind": "token_dropout"},
    "inner.proximal": 0.5,
    "inner.moved": "head",
    "start.b_std": 0.07,
    "start.rate": 0.007,
    "start.head_rate": 0.007,
    "start.rates_by_step": True,
    "start.scale": 9.0,
    "outer.tasks": 3,
    "outer.optimizer": "sgd",
    "outer.learning_rate": 0.007,
    "outer.rate_learning_rate": 0.5,
    "outer.clip": 1e-4,
    "outer.warmup": 2,
    "outer.decay": "linear",
    "outer.anchor": 0.5,
    "outer.average": 0.5,
    "episodes.ways": [2, 2],
    "episodes.shots": [2, 2],
    "episodes.queries": 3,
    "episodes.near_miss": 1.0,
    "episodes.merge": 1.0,
    "episodes.unequal": 1.0,
    "episodes.rows": 12,
}
OF_ONE_ALGORITHM: dict[tuple[str, str], Any] = {
    ("anil", "inner.moved"): "all",
    ("reptile", "outer.optimizer"): "adam",
    ("reptile", "outer.decay"): "none",
    ("adapted_protonet", "outer.decay"): "none",
    ("adapted_protonet", "inner.head"): "linear",
    ("adapted_protonet", "inner.objective"): {"leave_one_out": 1.0},
    ("adapted_protonet", "inner.steps_by_shots"): {1: 0, 2: 3},
    ("adapted_protonet", "algorithm.gradient"): {"mode": "unrolled"},
}
BASE: dict[str, Any] = {
    "outer": {"steps": 2, "tasks": 2},
    "episodes": {"ways": [3, 4], "shots": [2, 3], "queries": 2, "unequal": 0.0},
    "validation": {"every": 2, "episodes": 2, "ways": 3, "shots": [1]},
}


def options() -> list[tuple[str, str]]:
    """Return (algorithm, option) for all options that affect training, except those in `NOT_LEARNED`."""
    found = []
    for name, kind in ALGORITHMS.items():
        sections = {"algorithm": kind, **{s: Recipe.model_fields[s].annotation for s in ("inner", "start", "outer", "episodes")}}
        for section, model in sections.items():
            assert model is not None
            found += [(name, f"{section}.{option}") for option in model.model_fields if f"{section}.{option}" not in NOT_LEARNED]
    return found


def changed(tiny_folder: Path, algorithm: str, option: str) -> dict[str, Any]:
    section, name = option.split(".")
    plan = content(tiny_folder, algorithm={"name": algorithm}, **BASE)
    kind: type[AlgorithmConfig] = ALGORITHMS[algorithm]
    if option == "algorithm.learned":
        default = kind.model_fields["learned"].default
        value: Any = ["theta"] if "scale" in default else [*default, "scale"]
    elif option == "algorithm.gradient":
        default_mode = kind.model_fields["gradient"].default.mode
        value = {"iterations": 2} if default_mode == "implicit" else {"mode": "adjoint"}
    else:
        value = OTHER_VALUES[option]
    value = OF_ONE_ALGORITHM.get((algorithm, option), value)
    if plan.get(section, {}).get(name, None) == value:
        raise AssertionError(f"{option}: {value!r} is what the plan has")
    return {**plan, section: {**plan.get(section, {}), name: value}}


def outcome(plan: dict[str, Any], folder: Path) -> tuple[dict[str, torch.Tensor], bytes]:
    """Train with `plan`. Return (tensors of the last checkpoint, bytes of the history file)."""
    train(Recipe.model_validate(plan), Path(), folder)
    return load_file(folder / CHECKPOINT), (folder / NAME).read_bytes()


@pytest.fixture(scope="module")
def unchanged(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, torch.Tensor], bytes]]:
    plans = {name: content(tiny_folder, algorithm={"name": name}, **BASE) for name in ALGORITHMS}
    return {name: outcome(plan, tmp_path_factory.mktemp(name)) for name, plan in plans.items()}


@pytest.mark.long
@pytest.mark.parametrize(("algorithm", "option"), options(), ids=str)
def test_every_option_is_used_or_refused(
    tiny_folder: Path,
    tmp_path: Path,
    unchanged: dict[str, tuple[dict[str, torch.Tensor], bytes]],
    algorithm: str,
    option: str,
) -> None:
    plan = changed(tiny_folder, algorithm, option)
    try:
        Recipe.model_validate(plan)
    except ValidationError as refused:
        assert option.split(".")[1] in str(refused)
        return
    if algorithm == "protonet" and option.startswith("inner.") and option.split(".")[1] in OF_STEPS:
        return
    leaves, history = outcome(plan, tmp_path)
    before, history_before = unchanged[algorithm]
    same = leaves.keys() == before.keys() and all(torch.equal(leaf, before[name]) for name, leaf in leaves.items())
    assert not same or history != history_before, f"{option} changed nothing"
