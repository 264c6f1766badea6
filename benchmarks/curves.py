"""`make bench-curves`: the learning curve of every algorithm on a small problem.

A recipe of this benchmark names only the algorithm, so the inner loop, the rates and the outer optimizer are the defaults of the
algorithm's paper. The problem is the task set that ships with the package: 5-way tasks with one to three examples a class, and a
LoRA in the last two layers of the default base model. All algorithms train on the same tasks and are scored on the same validation
episodes.

The result has the validation accuracy every few outer steps, and the mean query loss of the tasks in between. `make plots` draws
it. A finished algorithm is kept in runs/, so that a later call continues with the next one.
"""

import shutil
from pathlib import Path
from typing import Any, get_args

import click

from benchmarks.record import RUNS, Progress, Row, write
from metatrain.meta.algorithms import AlgorithmSection
from metatrain.training.history import read_history
from metatrain.training.recipe import Recipe
from metatrain.training.run import train

CASE = "5-way, 1 or 3 shots, shipped task set"
EVERY = 20
ALGORITHMS = tuple(kind.model_fields["name"].default for kind in get_args(get_args(AlgorithmSection)[0]))


def recipe(algorithm: str, steps: int) -> Recipe:
    """Return the recipe of one algorithm: everything about the algorithm is a default."""
    training = ["gym_membership", "public_library", "veterinary_clinic", "car_rental"]
    training += ["theatre_tickets", "home_internet", "gardening_shop", "language_school"]
    validation = ["food_delivery", "property_rental", "museum_visit", "photo_printing"]
    return Recipe.model_validate(
        {
            "version": 2,
            "name": algorithm,
            "algorithm": {"name": algorithm},
            "base": {"precision": "float32"},
            "delta": {"rank": 4, "layers": [4, 5]},
            "episodes": {"ways": [5, 5], "shots": [1, 3], "queries": 4},
            "outer": {"steps": steps, "tasks": 4},
            "validation": {"every": EVERY, "episodes": 16, "ways": 5, "shots": [1, 3], "patience": steps},
            "data": {
                "train": [{"path": "starter", "labels": [f"{domain}/*" for domain in training]}],
                "valid": [{"path": "starter", "labels": [f"{domain}/*" for domain in validation]}],
            },
        }
    )


def curve(algorithm: str, steps: int) -> list[Row]:
    """Train one algorithm and return the points of its curve."""
    out = RUNS / "curves" / algorithm
    shutil.rmtree(out, ignore_errors=True)
    train(recipe(algorithm, steps), Path(), out)
    rows, losses = list[Row](), list[float]()
    for event in read_history(out):
        if event["event"] == "step":
            losses.append(event["loss"])
        elif event["event"] == "validation":
            rows.append(Row(CASE, algorithm, f"validation accuracy after step {event['step']}", 100 * event["score"], "%"))
            if losses:
                rows.append(
                    Row(
                        CASE,
                        algorithm,
                        f"query loss of the {len(losses)} steps, after step {event['step']}",
                        sum(losses) / len(losses),
                        "",
                    )
                )
            losses = []
    return rows


@click.command()
@click.option("--steps", default=100, show_default=True, help="Outer steps of each algorithm.")
@click.option("--only", type=click.Choice(ALGORITHMS), multiple=True, help="Run only these and write no result.")
def main(steps: int, only: tuple[str, ...]) -> None:
    finished, rows = Progress("curves"), list[Row]()
    for algorithm in only or ALGORITHMS:
        key = f"{algorithm} {recipe(algorithm, steps).digest}"
        points: list[dict[str, Any]] | None = finished.get(key)
        if points is None:
            points = [vars(row) for row in curve(algorithm, steps)]
            finished.put(key, points)
        found = [Row(**point) for point in points]
        scores = [row.value for row in found if row.unit == "%"]
        losses = [row.value for row in found if row.unit == ""]
        print(
            f"{algorithm:<18} accuracy {scores[0]:.1f} → {scores[-1]:.1f} %, query loss {losses[0]:.3f} → {losses[-1]:.3f}",
            flush=True,
        )
        rows += found
    if not only:
        print(f"wrote {write('curves', rows)}")


if __name__ == "__main__":
    main()
