"""Convert a recipe of version 1 to version 2, with the defaults of version 1 as explicit options.

In version 1, `maml` was first order by default, inner loops used Adam, and an algorithm learned θ, the rates and the scale as far
as it supported this. One difference cannot be expressed in version 2: in version 1, a meta-batch of large tasks had fewer than
`outer.tasks` tasks.
"""

from collections.abc import Mapping
from typing import Any

from metatrain.training.recipe import VERSION

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


def upgraded(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe of version 1 converted to version 2, as plain data."""
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
