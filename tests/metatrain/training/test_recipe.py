"""Recipes: their digests, and the errors for invalid files."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from metatrain.errors import RecipeError
from metatrain.training.recipe import read_recipe
from tests.metatrain.training.plans import content, recipe

RECIPES = Path(__file__).resolve().parents[3] / "metatrain" / "recipes"


def test_a_digest_depends_on_algorithm_and_delta_kind_but_not_on_options_at_their_defaults(tiny_folder: Path) -> None:
    recipes = [
        recipe(tiny_folder, algorithm={"name": name})
        for name in ("maml", "fomaml", "metasgd", "anil", "reptile", "imaml", "protonet", "adapted_protonet")
    ]
    recipes += [recipe(tiny_folder, delta={"kind": kind}) for kind in ("lora", "bottleneck", "ia3", "prefix", "prompt")]
    assert len({plan.digest for plan in recipes}) == len(recipes)
    assert recipe(tiny_folder, seed=0).digest == recipe(tiny_folder).digest != recipe(tiny_folder, seed=1).digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"trian": []}}, "data.trian: no such key; expected one of attribution, held_out, train, valid"),
        ({"algorithm": "maml"}, "algorithm: expected keys and values, got 'maml'"),
        ({"inner": {"stepz": 3}}, "inner.stepz: no such key; expected one of augmentation, "),
        (
            {"algorithm": {"name": "mamml"}},
            "algorithm.name: expected one of 'maml', 'fomaml', 'metasgd', 'anil', 'reptile', 'imaml', 'protonet', "
            "'adapted_protonet', got 'mamml'",
        ),
        ({"outer": {"steps": 0}}, "outer.steps: Input should be greater than or equal to 1, got '0'"),
        ({"inner": {"steps": 2, "steps_by_shots": {1: 0}}}, "inner.steps: 2 is never taken"),
        ({"name": "Two Words"}, "name: String should match pattern"),
        (
            {"delta": {"kind": "hed"}},
            "delta.kind: expected one of 'lora', 'bottleneck', 'prefix', 'prompt', 'ia3', 'head', got 'hed'",
        ),
        ({"delta": "lora"}, "delta"),
        ({"delta": None}, "delta"),
        ({"delta": {"kind": "prefix", "rank": 3}}, "delta.rank: no such key; expected one of kind, layers, tokens"),
        (
            {"data": {"train": [{"path": "starter", "lables": ["a"]}], "valid": [{"path": "starter"}]}},
            "data.train.0.lables: no such key; expected one of columns, labels, path, split",
        ),
        ({"delta": {"kind": "head"}}, 'inner.moved: a delta of kind "head" has nothing else to move; expected "head", got "all"'),
        (
            {"algorithm": {"name": "anil"}, "inner": {"head": "prototypes"}},
            "inner.head: anil sets it to 'linear', got 'prototypes'; leave it out",
        ),
        (
            {"algorithm": {"name": "maml", "gradient": {"mode": "implicit"}}},
            "algorithm.gradient: mode: expected one of unrolled, checkpointed, adjoint, auto, got 'implicit'",
        ),
        (
            {"algorithm": {"name": "fomaml", "gradient": {"mode": "adjoint"}}},
            "algorithm.gradient: no such key; expected one of learned, multi_step, name",
        ),
    ],
)
def test_an_invalid_recipe_is_a_one_line_error(tiny_folder: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content(tiny_folder, **change)))
    with pytest.raises(RecipeError) as error:
        read_recipe(path)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    assert read_recipe(path).name == path.stem
