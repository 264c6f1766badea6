"""Recipe options that have no effect with the other settings are refused.

The cases are generated from the configuration classes, so they include new options.
"""

from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from metatrain.inner.config import InnerConfig
from metatrain.meta.algorithms import AlgorithmSection
from metatrain.meta.algorithms.config import AlgorithmConfig
from metatrain.meta.differentiation import Differentiation
from metatrain.options import UsedWith, refuse_unused, with_fixed
from metatrain.training.outer_step import OuterConfig
from metatrain.training.recipe import Recipe

SECTIONS: tuple[type[BaseModel], ...] = (Differentiation, InnerConfig, OuterConfig)
ALGORITHMS: dict[str, type[AlgorithmConfig]] = {
    kind.model_fields["name"].default: kind for kind in get_args(get_args(AlgorithmSection)[0])
}
DATA = {"train": [{"path": "starter", "labels": ["gym_membership/*"]}], "valid": [{"path": "starter"}]}


def marked() -> list[tuple[type[BaseModel], str, UsedWith, Any]]:
    """Return (section, option, mark, choice) for all settings that make an option ineffective.

    `mark` is the option's `UsedWith` annotation, which names another field, `mark.beside`. `choice` is a value of that field with
    which the option has no effect.
    """
    cases: list[tuple[type[BaseModel], str, UsedWith, Any]] = []
    for section in SECTIONS:
        for option, field in section.model_fields.items():
            for mark in field.metadata:
                if isinstance(mark, UsedWith):
                    choices = set(get_args(section.model_fields[mark.beside].annotation)) - set(mark.values)
                    cases += [(section, option, mark, choice) for choice in sorted(choices)]
    return cases


@pytest.mark.parametrize(
    ("section", "option", "mark", "choice"),
    marked(),
    ids=lambda value: value if isinstance(value, str) else getattr(value, "beside", ""),
)
def test_an_option_of_another_choice_is_refused(section: type[BaseModel], option: str, mark: UsedWith, choice: Any) -> None:
    other_marks = [other for other in section.model_fields[option].metadata if isinstance(other, UsedWith) and other != mark]
    used = {other.beside: other.values[0] for other in other_marks}
    config = section.model_construct(**used, **{mark.beside: choice, option: NON_DEFAULT_VALUES[section, option]})
    with pytest.raises(ValueError, match=f"used only with {mark.beside} "):
        refuse_unused(config)
    refuse_unused(section.model_construct(**{mark.beside: choice}))


NON_DEFAULT_VALUES: dict[tuple[type[BaseModel], str], Any] = {
    (Differentiation, "memory_mb"): 7,
    (Differentiation, "segment"): 3,
    (Differentiation, "product"): "forward",
    (Differentiation, "solver"): "neumann",
    (Differentiation, "iterations"): 3,
    (Differentiation, "damping"): 0.5,
    (Differentiation, "neumann_rate"): 0.3,
    (InnerConfig, "beta1"): 0.5,
    (InnerConfig, "beta2"): 0.5,
    (InnerConfig, "epsilon"): 0.5,
    (InnerConfig, "rows_per_step"): 7,
}


def test_every_marked_option_has_a_value_in_these_tests() -> None:
    assert {(section, option) for section, option, _, _ in marked()} == NON_DEFAULT_VALUES.keys()


def plan(algorithm: str, **sections: Any) -> Recipe:
    return Recipe.model_validate({"name": "tiny", "algorithm": {"name": algorithm}, "data": DATA, **sections})


def fixed() -> list[tuple[str, str, str, Any]]:
    """Return (algorithm, section, option, value) for every option that an algorithm fixes to a value."""
    algorithms = {name: kind(name=name) for name, kind in ALGORITHMS.items()}
    return [
        (n, s, o, v) for n, algorithm in algorithms.items() for s, options in algorithm.fixed.items() for o, v in options.items()
    ]


OTHER_VALUES: dict[str, Any] = {
    "head": {"linear": "prototypes", "prototypes": "linear"},
    "moved": {"all": "head", "head": "all"},
    "steps": 3,
    "steps_by_shots": {1: 2},
    "hard_steps": {"below": 0.5, "steps": 50},
    "in_parts": {"objective": {"cross_entropy": 1.0}},
    "proximal": 0.25,
    "anchor": 0.25,
    "rates_by_step": True,
}


@pytest.mark.parametrize(("algorithm", "section", "option", "value"), fixed(), ids=str)
def test_another_value_for_an_option_that_the_algorithm_sets_is_refused(
    algorithm: str, section: str, option: str, value: Any
) -> None:
    other = OTHER_VALUES[option]
    other = other[value] if option in ("head", "moved") else other
    with pytest.raises(ValidationError, match=rf"{section}\.{option}: {algorithm} sets it to .*; leave it out"):
        plan(algorithm, **{section: {option: other}})
    assert (
        getattr(getattr(plan(algorithm), section), option)
        == value
        == getattr(getattr(plan(algorithm, **{section: {option: value}}), section), option)
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_recipe_written_out_and_read_again_is_equal(algorithm: str) -> None:
    recipe = plan(algorithm)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert Recipe.model_validate(recipe.model_dump()).digest == recipe.digest


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_papers_settings_are_the_defaults(algorithm: str) -> None:
    for section, options in ALGORITHMS[algorithm].defaults.items():
        made = getattr(plan(algorithm), section)
        assert {option: getattr(made, option) for option in options} == dict(options)
    assert plan(algorithm, outer={"learning_rate": 0.5}).outer.learning_rate == 0.5


@pytest.mark.parametrize(
    ("algorithm", "order", "optimizer", "steps", "rate", "learned"),
    [
        ("maml", "unrolled", "sgd", 5, 0.01, ("theta",)),
        ("metasgd", "unrolled", "sgd", 1, 0.05, ("theta", "rates")),
        ("anil", "unrolled", "sgd", 5, 0.01, ("theta",)),
        ("imaml", "implicit", "sgd", 16, 0.01, ("theta",)),
        ("fomaml", None, "sgd", 5, 0.01, ("theta",)),
        ("reptile", None, "adam", 5, 1e-3, ("theta",)),
        ("protonet", None, None, 0, None, ("theta",)),
    ],
)
def test_a_name_has_the_settings_of_its_paper(
    algorithm: str, order: str | None, optimizer: str | None, steps: int, rate: float | None, learned: tuple[str, ...]
) -> None:
    recipe = plan(algorithm)
    assert getattr(getattr(recipe.algorithm, "gradient", None), "mode", None) == order
    assert recipe.algorithm.second_derivative == (order is not None)
    assert optimizer is None or recipe.inner.optimizer == optimizer
    assert recipe.inner.steps == steps and recipe.algorithm.learned == learned
    assert rate is None or (recipe.start.rate, recipe.start.head_rate) == (rate, rate)
    assert (recipe.outer.clip, recipe.outer.warmup) == (None, 0) and recipe.outer.decay in ("none", "linear")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outer": {"rate_learning_rate": 0.5}}, r"outer\.rate_learning_rate: not used, because algorithm\.learned has neither"),
        ({"outer": {"base_learning_rate": 0.5}}, r"outer\.base_learning_rate: not used, because base\.updated is empty"),
        ({"algorithm": {"name": "anil"}, "delta": {"kind": "head"}, "start": {"b_std": 0.5}}, r"start\.b_std: not used, because"),
        ({"algorithm": {"name": "maml", "learned": ["theta", "theta"]}}, "learned: expected each name once"),
        ({"algorithm": {"name": "reptile", "learned": ["theta", "rates"]}}, r"learned"),
        ({"algorithm": {"name": "imaml", "learned": ["rates"]}}, r"learned"),
        ({"inner": {"epsilon": 0.5}}, "epsilon: used only with optimizer adam, got optimizer sgd"),
        (
            {"algorithm": {"name": "adapted_protonet"}, "inner": {"steps": 0}},
            "expected at least 1, got 0; without inner steps use protonet",
        ),
    ],
)
def test_other_unused_options_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        plan("maml", **change) if "algorithm" not in change else Recipe.model_validate({"name": "tiny", "data": DATA, **change})


def test_fixed_options_are_added_to_the_given_ones() -> None:
    given = {"inner": {"steps": 2}}
    assert with_fixed(given, {"inner": {"head": "linear"}, "outer": {"anchor": 0.0}}, "an algorithm") == {
        "inner": {"steps": 2, "head": "linear"},
        "outer": {"anchor": 0.0},
    }
    assert given == {"inner": {"steps": 2}}
