"""The folds of `make bench-transfer`: the default recipe without a fold's data sets, and those sets to be tested on.

`python -m benchmarks.folds FOLD --data FOLDER` meta-trains one (resumable); the benchmarks use what it left in `runs/`.
"""

import json
from pathlib import Path

import click

from benchmarks.record import RUNS
from metatrain.training.recipe import Recipe, read_recipe

FOLDS: dict[str, tuple[str, ...]] = {"banking77": ("banking77",), "clinc150": ("clinc150",), "hwu64-liu54": ("hwu64", "liu54")}
DEFAULT_RECIPE = Path(__file__).resolve().parents[1] / "metatrain" / "recipes" / "default.yaml"


def fold_recipe(fold: str) -> Recipe:
    """The default recipe without the fold's sets, which are held out: not a text of theirs is trained on, not a class under another
    name."""
    recipe = read_recipe(DEFAULT_RECIPE)
    held = tuple(source for source in recipe.data.train if source.path.split("/")[0] in FOLDS[fold])
    kept = tuple(source for source in recipe.data.train if source not in held)
    data = recipe.data.model_copy(update={"train": kept, "held_out": recipe.data.held_out + held})
    return recipe.model_copy(update={"name": f"without-{fold}", "data": data})


def fold_initialization(fold: str) -> Path:
    """Where the fold's initialization is. Raises click.ClickException where it has not been trained."""
    folder = RUNS / f"without-{fold}" / f"without-{fold}"
    if not (folder / "initialization.json").is_file():
        raise click.ClickException(f"no initialization at {folder}: run `python -m benchmarks.folds {fold} --data FOLDER` first")
    made_by = json.loads((folder / "initialization.json").read_bytes())["provenance"]["recipe"]
    if Recipe.model_validate(made_by) != fold_recipe(fold):
        raise click.ClickException(f"{folder} was trained by another recipe than {DEFAULT_RECIPE.name} is now; move it away")
    return folder


@click.command()
@click.argument("folds", nargs=-1, type=click.Choice(list(FOLDS)))
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
def main(folds: tuple[str, ...], data: Path) -> None:
    """Meta-train the FOLDS (all where none is named) that are not there yet."""
    from metatrain.cli import train_with_progress

    for fold in folds or FOLDS:
        train_with_progress(fold_recipe(fold), data, RUNS / f"without-{fold}")


if __name__ == "__main__":
    main()
