"""Convert a recipe of version 1 to version 2, with the defaults of version 1 as explicit options.

In version 1, `maml` was first order by default, inner loops used Adam, and an algorithm learned θ, the rates and the scale as far
as it supported this. One difference cannot be expressed in version 2: in version 1, a meta-batch of large tasks had fewer than
`outer.tasks` tasks.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quickstudy.one_line import shown, shown_path

from metatrain.errors import RecipeError
from metatrain.training.recipe import VERSION, Recipe, validated
from metatrain.training.yaml_file import read_yaml

_LEARNED = {"reptile": ["theta"], "imaml": ["theta", "scale"], "protonet": ["theta", "scale"]}
_SET_BY_ALGORITHM = {
    "anil": ("moved",),
    "imaml": ("proximal",),
    "protonet": ("steps", "steps_by_shots", "hard_steps", "in_parts"),
}
"""Inner options that the algorithm set in version 1, whatever the recipe said."""
_INNER = {"optimizer": "adam", "steps": 5}
_START = {"rate": 3e-3, "head_rate": 3e-3}
_OUTER = {"optimizer": "adam", "learning_rate": 1e-3, "clip": 1.0, "warmup": 20, "decay": "cosine"}


def read_upgraded(path: Path) -> dict[str, Any]:
    """Read a recipe of version 1 and return it as one of version 2, as plain data that was validated.

    Raises RecipeError if the file is not a recipe of version 1, or if the recipe is not valid.
    """
    content = read_yaml(path, "recipe")
    if not isinstance(content, dict) or "version" in content or "algorithm" not in content:
        raise RecipeError(f"{shown_path(path)}: expected a recipe of version 1, which has an algorithm and no version")
    try:
        recipe = upgraded(content)
    except RecipeError as error:
        raise RecipeError(f"{shown_path(path)}: {error}") from error
    validated(recipe, path, Recipe)
    return recipe


def upgraded(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe of version 1 converted to version 2, as plain data.

    Raises RecipeError for a section that has no keys. All else is checked when the result is validated.
    """
    _check_sections(recipe)
    inner, algorithm = dict(recipe.get("inner", {})), dict(recipe["algorithm"])
    name = _algorithm_name(algorithm, inner)
    if name == "imaml":
        algorithm.setdefault("strength", 1.0)
    algorithm |= {"name": name, "learned": _LEARNED.get(name, ["theta", "rates", "scale"])}
    episodes = {**recipe.get("episodes", {}), "unequal": 0.0}
    outer = {**_OUTER, **recipe.get("outer", {})}
    outer["rows_at_once"] = episodes.get("rows", 400)
    has_steps = "steps" in inner or 1 in inner.get("steps_by_shots", {})
    defaults = {option: value for option, value in _INNER.items() if option != "steps" or not has_steps}
    inner = {option: value for option, value in (defaults | inner).items() if option not in _SET_BY_ALGORITHM.get(name, ())}
    start = {**_START, **recipe.get("start", {})}
    changed = {"algorithm": algorithm, "inner": inner, "start": start, "episodes": episodes, "outer": outer}
    return {"version": VERSION, **recipe, **changed}


def _check_sections(recipe: Mapping[str, Any]) -> None:
    sections = {name: recipe.get(name, {}) for name in ("algorithm", "inner", "start", "episodes", "outer")}
    if isinstance(sections["inner"], Mapping):
        sections["inner.steps_by_shots"] = sections["inner"].get("steps_by_shots", {})
    for name, section in sections.items():
        if not isinstance(section, Mapping):
            raise RecipeError(f"{name}: expected keys and values, got {shown(section)}")
    if not isinstance(recipe["algorithm"].get("name"), str):
        raise RecipeError(f"algorithm.name: expected a name, got {shown(recipe['algorithm'].get('name'))}")


def _algorithm_name(algorithm: dict[str, Any], inner: Mapping[str, Any]) -> str:
    """Return the algorithm's name in version 2, and remove the option `order` from `algorithm`.

    `order` does not exist in version 2. For `adapted_protonet`, the order "second" becomes the mode "unrolled" of the option
    `gradient`.
    """
    name: str = algorithm["name"]
    order = algorithm.pop("order", "first")
    if name != "maml":
        return name
    if inner.get("head") == "prototypes":
        if order == "second":
            algorithm.setdefault("gradient", {"mode": "unrolled"})
        return "adapted_protonet"
    return "maml" if order == "second" else "fomaml"
