"""Conversion of version 1 recipes: the defaults of version 1 become explicit options."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from metatrain.cli import main
from metatrain.errors import RecipeError
from metatrain.training.recipe import Recipe, read_recipe
from metatrain.training.upgrade import upgraded

DATA = {"train": [{"path": "starter", "labels": ["gym_membership/*"]}], "valid": [{"path": "starter"}]}


@pytest.mark.parametrize(
    ("algorithm", "inner", "expected"),
    [
        ({"name": "maml"}, {}, {"name": "fomaml", "learned": ("theta", "rates", "scale")}),
        ({"name": "maml", "order": "second", "gradient": {"mode": "adjoint"}}, {"optimizer": "sgd"}, {"name": "maml"}),
        (
            {"name": "maml", "order": "first"},
            {"objective": {"supervised_contrastive": 1}, "head": "prototypes", "steps": 2, "steps_by_shots": {1: 0, 2: 2}},
            {"name": "adapted_protonet"},
        ),
        (
            {"name": "protonet"},
            {"steps": 3, "in_parts": {"objective": {"cross_entropy": 1}}},
            {"name": "protonet", "learned": ("theta", "scale")},
        ),
        ({"name": "reptile"}, {}, {"name": "reptile", "learned": ("theta",)}),
        ({"name": "imaml"}, {"proximal": 0.5}, {"name": "imaml", "strength": 1.0}),
        ({"name": "metasgd", "rates": "leaf"}, {"steps_by_shots": {1: 2}}, {"name": "metasgd", "rates": "leaf"}),
        ({"name": "anil"}, {"moved": "all"}, {"name": "anil"}),
    ],
    ids=lambda value: str(value.get("name", "")) if isinstance(value, dict) else None,
)
def test_the_defaults_of_version_1_become_explicit(
    algorithm: dict[str, Any], inner: dict[str, Any], expected: dict[str, Any]
) -> None:
    old = {"name": "tiny", "algorithm": algorithm, "inner": inner, "data": DATA, "episodes": {"rows": 120, "ways": [2, 4]}}
    recipe = Recipe.model_validate(upgraded(old))
    assert {option: getattr(recipe.algorithm, option) for option in expected} == expected
    assert recipe.inner.optimizer == inner.get("optimizer", "adam") and (recipe.start.rate, recipe.start.head_rate) == (3e-3, 3e-3)
    outer = recipe.outer
    assert (outer.optimizer, outer.clip, outer.warmup, outer.decay, outer.rows_at_once) == ("adam", 1.0, 20, "cosine", 120)
    assert recipe.episodes.unequal == 0
    if algorithm["name"] not in ("protonet",):
        assert recipe.inner.steps_for(4, 4) == inner.get("steps_by_shots", {}).get(1, inner.get("steps", 5))


def test_the_error_for_a_recipe_without_a_version_names_the_upgrade_command(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump({"name": "tiny", "algorithm": {"name": "maml"}, "data": DATA}))
    with pytest.raises(
        RecipeError, match=r"version: expected 2, got none; .*`metatrain upgrade .*old\.yaml` prints it in version 2"
    ):
        read_recipe(path)
    result = CliRunner().invoke(main, ["upgrade", str(path)])
    assert result.exit_code == 0, result.output
    path.write_text(result.output)
    assert read_recipe(path).algorithm.name == "fomaml"
    again = CliRunner().invoke(main, ["upgrade", str(path)])
    assert again.exit_code == 1 and "expected a recipe of version 1" in again.output
    path.write_text(yaml.safe_dump({"version": 3, "name": "tiny"}))
    with pytest.raises(RecipeError, match="version: expected 2, got 3"):
        read_recipe(path)
