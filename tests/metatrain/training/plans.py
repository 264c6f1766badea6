"""Recipes for a small training run on the tiny model and the shipped task set."""

from pathlib import Path
from typing import Any

from metatrain.training.recipe import Recipe


def content(tiny_folder: Path, **changes: Any) -> dict[str, Any]:
    """Return a recipe as plain data: FOMAML with Adam in the inner loop and learned rates.

    Each of `changes` replaces a whole top-level section.
    """
    algorithm = changes.get("algorithm", {})
    steps = {} if isinstance(algorithm, dict) and algorithm.get("name") in ("protonet", "adapted_protonet") else {"steps": 2}
    return {
        "version": 2,
        "name": "tiny",
        "base": {"model": str(tiny_folder), "precision": "float32"},
        "delta": {"rank": 2, "targets": ["query"]},
        "algorithm": {"name": "fomaml", "learned": ["theta", "rates", "scale"]},
        "inner": {"optimizer": "adam", **steps},
        "start": {"rate": 3e-3, "head_rate": 3e-3},
        "data": {
            "train": [{"path": "starter", "labels": ["gym_membership/*", "car_rental/*"]}],
            "valid": [{"path": "starter", "labels": ["public_library/*"]}],
        },
        "episodes": {"ways": [2, 4], "shots": [1, 3], "queries": 2},
        "outer": {"steps": 8, "tasks": 2, "warmup": 2, "clip": 1.0, "decay": "cosine"},
        "validation": {"every": 4, "episodes": 2, "ways": 3, "shots": [1, 2]},
        **changes,
    }


def recipe(tiny_folder: Path, **changes: Any) -> Recipe:
    return Recipe.model_validate(content(tiny_folder, **changes))
