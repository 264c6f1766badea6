"""The folds of `make bench-transfer`: each is the default recipe with some data sets held out.

A fold is tested on the data sets that its training leaves out. `python -m benchmarks.folds FOLD --data FOLDER` meta-trains one fold
and can be resumed. The benchmarks read the trained initialization from `runs/`.
"""

import json
from pathlib import Path

import click

from benchmarks.record import RUNS
from metatrain.training.recipe import Recipe, read_recipe

FOLDS: dict[str, tuple[str, ...]] = {"banking77": ("banking77",), "clinc150": ("clinc150",), "hwu64-liu54": ("hwu64", "liu54")}
DEFAULT_RECIPE = Path(__file__).resolve().parents[1] / "metatrain" / "recipes" / "default.yaml"


def fold_recipe(fold: str) -> Recipe:
    """Return the default recipe with the fold's data sets held out.

    Held-out data sets are excluded entirely: training uses none of their texts and none of their classes, even under other names.
    """
    recipe = read_recipe(DEFAULT_RECIPE)
    held_out = tuple(source for source in recipe.data.train if source.path.split("/")[0] in FOLDS[fold])
    trained = tuple(source for source in recipe.data.train if source not in held_out)
    data = recipe.data.model_copy(update={"train": trained, "held_out": recipe.data.held_out + held_out})
    return recipe.model_copy(update={"name": f"without-{fold}", "data": data})


def fold_initialization(fold: str) -> Path:
    """Return the folder of the fold's trained initialization.

    Raises click.ClickException if the fold has not been trained, or was trained with another recipe.
    """
    folder = RUNS / f"without-{fold}" / f"without-{fold}"
    if not (folder / "initialization.json").is_file():
        raise click.ClickException(f"no initialization at {folder}: run `python -m benchmarks.folds {fold} --data FOLDER` first")
    trained_recipe = json.loads((folder / "initialization.json").read_bytes())["provenance"]["recipe"]
    if Recipe.model_validate(trained_recipe) != fold_recipe(fold):
        raise click.ClickException(f"{folder} was trained with another recipe than the present {DEFAULT_RECIPE.name}; move it away")
    return folder


@click.command()
@click.argument("folds", nargs=-1, type=click.Choice(list(FOLDS)))
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
def main(folds: tuple[str, ...], data: Path) -> None:
    """Meta-train the FOLDS that are not trained yet; without arguments, all of them."""
    from metatrain.cli import train_with_progress

    for fold in folds or FOLDS:
        train_with_progress(fold_recipe(fold), data, RUNS / f"without-{fold}")


if __name__ == "__main__":
    main()
