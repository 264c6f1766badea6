"""Recipes of a small training run on the tiny model and the shipped task set."""

from pathlib import Path
from typing import Any

from metatrain.training.recipe import Recipe


def content(tiny_folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "base": {"model": str(tiny_folder), "precision": "float32"},
        "delta": {"rank": 2, "targets": ["query"]},
        "algorithm": {"name": "maml", "order": "first"},
        "inner": {"steps": 2},
        "data": {
            "train": [{"path": "starter", "labels": ["gym_membership/*", "car_rental/*"]}],
            "valid": [{"path": "starter", "labels": ["public_library/*"]}],
        },
        "episodes": {"ways": [2, 4], "shots": [1, 3], "queries": 2},
        "outer": {"steps": 8, "tasks": 2, "warmup": 2},
        "validation": {"every": 4, "episodes": 2, "ways": 3, "shots": [1, 2]},
        **changes,
    }


def recipe(tiny_folder: Path, **changes: Any) -> Recipe:
    return Recipe.model_validate(content(tiny_folder, **changes))
