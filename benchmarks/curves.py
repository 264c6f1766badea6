"""`make bench-curves`: the learning curve of every algorithm, with the defaults of its paper.

There are two problems. On small nets (`small_problems.py`), the curve is the mean query loss of unseen tasks, by outer step. On
texts, it is the accuracy on validation episodes: 5-way tasks of the task set that ships with the package, one to three examples a
class, and a LoRA in the last two layers of the default base model. All algorithms train on the same tasks.

`make plots` draws the curves. A finished curve is kept in runs/, so that a later call continues with the next one.
"""

import shutil
from pathlib import Path

import click

from benchmarks.record import RUNS, Progress, Row, write
from benchmarks.small_problems import ALGORITHMS, learning_curve
from metatrain.training.history import read_history
from metatrain.training.recipe import Recipe
from metatrain.training.run import train

SMALL, TEXT = "small net", "5-way, 1 to 3 shots, shipped task set"
SMALL_STEPS, SMALL_EVERY = 1000, 50
EVERY = 20


def recipe(algorithm: str, steps: int) -> Recipe:
    """Return the recipe that trains one algorithm with all of the algorithm's options at their defaults."""
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


def text_curve(algorithm: str, steps: int) -> list[tuple[int, float]]:
    """Train one algorithm on texts and return (outer step, validation accuracy in percent)."""
    out = RUNS / "curves" / algorithm
    shutil.rmtree(out, ignore_errors=True)
    train(recipe(algorithm, steps), Path(), out)
    return [(event["step"], 100 * event["score"]) for event in read_history(out) if event["event"] == "validation"]


@click.command()
@click.option("--steps", default=100, show_default=True, help="Outer steps of each algorithm on texts.")
@click.option("--small-only", is_flag=True, help="Leave out texts, which take minutes an algorithm, and write no result.")
def main(steps: int, small_only: bool) -> None:
    finished, rows = Progress("curves"), list[Row]()
    for algorithm in ALGORITHMS:
        for case, unit in ((SMALL, "loss"),) if small_only else ((SMALL, "loss"), (TEXT, "%")):
            key = f"{case} {algorithm} {SMALL_STEPS if case == SMALL else recipe(algorithm, steps).digest}"
            if (points := finished.get(key)) is None:
                small = case == SMALL
                points = list(learning_curve(algorithm, SMALL_STEPS, SMALL_EVERY)) if small else text_curve(algorithm, steps)
                finished.put(key, points)
            rows += [Row(case, algorithm, f"after {step} steps", value, unit) for step, value in points]
            print(f"{case:<40} {algorithm:<18} {points[0][1]:8.3f} → {points[-1][1]:.3f} {unit}", flush=True)
    if not small_only:
        print(f"wrote {write('curves', rows)}")


if __name__ == "__main__":
    main()
