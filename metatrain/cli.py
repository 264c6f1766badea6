"""The command line of `metatrain`: `train`, `upgrade`, `search` and `evaluate`."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from quickstudy.commands.one_line_errors import OneLineErrors
from tqdm import tqdm

from metatrain.errors import RecipeError

if TYPE_CHECKING:
    from metatrain.training.recipe import Recipe

RECIPES = Path(__file__).with_name("recipes")
DEFAULT_INITIALIZATION = Path(__file__).with_name("initializations") / "default"
_SHOWN_REMOVALS = 5
"""How many of the classes that lost texts `train` prints; log.jsonl has all of them."""


@click.group(cls=OneLineErrors)
def main() -> None:
    """Meta-train initializations for few-shot adaptation, and measure them."""
    # OpenMP reads this when torch is imported, which happens later. Threads that spin for long slow down others on shared cores.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


@main.command()
@click.argument("recipe_file", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), default=Path(), help="Folder that the recipe's paths are relative to.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of checkpoints and the initialization.  [default: runs/NAME]")
@click.option("--max-steps", type=click.IntRange(min=1), help="Stop after this many outer steps; run again to continue.")
@click.option("--tensorboard", is_flag=True, help="Write scalars to OUT/tensorboard during training.")
@click.option("--report/--no-report", "with_report", default=False, help="Write OUT/report.html after training.")
def train(recipe_file: Path, data: Path, out: Path | None, max_steps: int | None, tensorboard: bool, with_report: bool) -> None:
    """Meta-train RECIPE_FILE: a path, or the name of a shipped recipe. Run it again to resume.

    A first run is `metatrain train starter --report`. It trains for a few minutes on the shipped task set and writes
    runs/starter/report.html.

    To share each meta-batch among several processes, start them with torchrun: torchrun --nproc-per-node 2 -m metatrain.cli train …
    """
    from metatrain.training.recipe import read_recipe  # imported late, so that `--help` does not load torch

    recipe = read_recipe(_recipe_path(recipe_file))
    folder = out or Path("runs") / recipe.name
    if with_report:
        from metatrain.training.report import check_installed, write_report

        check_installed()
    train_with_progress(recipe, data, folder, max_steps=max_steps, tensorboard=tensorboard)
    if int(os.environ.get("RANK", "0")):
        return
    click.echo(f"wrote {folder / recipe.name}")
    if with_report:
        click.echo(f"wrote {write_report(recipe, data, folder)}")


def _recipe_path(recipe_file: Path) -> Path:
    shipped = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
    if recipe_file.is_file():
        return recipe_file
    if str(recipe_file) not in shipped:
        raise RecipeError(f"no recipe at {recipe_file}; those that ship with the package: {', '.join(shipped)}")
    return shipped[str(recipe_file)]


def train_with_progress(
    recipe: "Recipe", data: Path, folder: Path, *, max_steps: int | None = None, tensorboard: bool = False
) -> None:
    """Run `metatrain.training.run.train` and show its progress.

    If several processes share the run, only the first one shows progress and writes logs.
    """
    from metatrain.training import processes, report
    from metatrain.training import run as training

    group = processes.join()
    try:
        listeners = [report.logger(folder), *([report.tensorboard(folder)] if tensorboard else [])] if group.first else []
        with tqdm(total=recipe.outer.steps, unit="step", smoothing=0.1, disable=None if group.first else True) as bar:

            def on_event(event: dict[str, Any]) -> None:
                for listener in listeners:
                    listener(event)
                if group.first:
                    _show_event(bar, event)

            training.train(recipe, data, folder, on_event=on_event, max_steps=max_steps, processes=group)
    finally:
        processes.leave()


def _show_event(bar: "tqdm[Any]", event: dict[str, Any]) -> None:
    if event["event"] == "data":
        for part in ("train", "valid"):
            sizes = ", ".join(f"{name} ({n['classes']} classes, {n['texts']} texts)" for name, n in event[part].items())
            bar.write(f"{part}: {sizes}")
        if event["dropped"]:
            bar.write(f"overlap between data sets: {len(event['dropped'])} classes lost texts or were removed")
            for line in event["dropped"][:_SHOWN_REMOVALS]:
                bar.write(f"  {line}")
            if len(event["dropped"]) > _SHOWN_REMOVALS:
                bar.write(f"  and {len(event['dropped']) - _SHOWN_REMOVALS} more, which log.jsonl lists")
    elif event["event"] == "validation":
        shots = ", ".join(f"{shots}-shot {value:.1%}" for shots, value in event["by_shots"].items())
        bar.write(f"step {event['step']:>5}  validation {event['score']:.2%} ({shots})  best at step {event['best_step']}")
    else:
        bar.update(event["step"] - bar.n)
        if "loss" in event:
            bar.set_postfix(loss=f"{event['loss']:.3f}", accuracy=f"{event['accuracy']:.2f}", refresh=False)
        else:
            bar.write(f"step {event['step']:>5}  skipped: the meta-gradient is not finite ({event['skipped']} skipped so far)")


@main.command()
@click.argument("recipe_file", type=click.Path(path_type=Path))
def upgrade(recipe_file: Path) -> None:
    """Convert RECIPE_FILE, a recipe of version 1, to version 2 and print it.

    Defaults of version 1 that are different in version 2 are printed as explicit options.
    """
    import yaml

    from metatrain.training.upgrade import read_upgraded

    recipe = read_upgraded(recipe_file)
    click.echo(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120), nl=False)


@main.command()
@click.argument("space_file", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), default=Path(), help="Folder that the space's paths are relative to.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the finished candidates.  [default: runs/NAME]")
def search(space_file: Path, data: Path, out: Path | None) -> None:
    """Search for a delta and an inner loop by successive halving on validation data sets.

    SPACE_FILE is a YAML file that describes the candidates. Run the command again to resume.
    """
    from metatrain.training import search as halving

    space = halving.read_space(space_file)
    results = halving.search(space, data, out or Path("runs") / space.name, on_event=_show_candidate)
    best = results[0]
    click.echo(f"best: {best['label']}\n  steps by shots: {best['best_steps']}\n  accuracy by shots and step: {best['accuracy']}")


def _show_candidate(event: dict[str, Any]) -> None:
    steps = ", ".join(f"{shots}-shot {n}" for shots, n in event["best_steps"].items())
    click.echo(f"rung {event['rung'] + 1}/{event['of']}  {event['score']:.2%}  steps {steps:<24} {event['label']}")


@main.command()
@click.argument("initializations", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--data", "data_file", type=click.Path(path_type=Path), help="File of texts and labels.  [default: the shipped task set]"
)
@click.option("--ways", type=click.IntRange(min=2), default=5, show_default=True)
@click.option("--shots", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--queries", type=click.IntRange(min=1), default=5, show_default=True, help="Queries per class.")
@click.option("--episodes", "count", type=click.IntRange(min=2), default=100, show_default=True)
@click.option("--steps", type=click.IntRange(0, 100), help="Number of inner steps, in place of the initialization's.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def evaluate(
    initializations: tuple[Path, ...],
    data_file: Path | None,
    ways: int,
    shots: int,
    queries: int,
    count: int,
    steps: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Compare INITIALIZATIONS with frozen prototypes and plain LoRA from zero on the same episodes.

    INITIALIZATIONS are folders. If none is given, the default that ships with the package is evaluated. The table shows
    the mean difference in accuracy from frozen prototypes on the same episodes, ± half the width of its 95 % confidence interval.
    `--json` calls these `over_frozen` and `interval`.
    """
    from metatrain.artifacts.baselines import frozen_prototypes, lora_from_zero
    from metatrain.artifacts.initialization import load_initialization
    from metatrain.inner.encoded import Encoded
    from metatrain.models.loading import load_base
    from metatrain.serving.probe_cache import probe_once
    from metatrain.tasks.episodes import EpisodeSampler, EpisodeShape
    from metatrain.tasks.table import STARTER, read_table
    from metatrain.training.evaluate import evaluate as score
    from metatrain.training.evaluate import own_steps, paired_interval

    base = load_base(precision="float32")
    sampler = EpisodeSampler([read_table(data_file or STARTER)], seed)
    episodes = [sampler.episode(i, EpisodeShape(ways, shots, queries)) for i in range(count)]
    loaded = [load_initialization(folder, base) for folder in initializations or (DEFAULT_INITIALIZATION,)]
    for init in loaded:
        probe_once(base, base.attach(init.delta))
    systems = [(frozen_prototypes(base), None), (lora_from_zero(base), None), *((init, steps) for init in loaded)]
    encoded, frozen = Encoded(base), None
    rows: list[dict[str, Any]] = []
    for init, requested in systems:
        with tqdm(total=count, desc=init.name, unit="episode", leave=False, disable=None) as bar:
            scores = score(base, init, episodes, steps=requested, encoded=encoded, progress=bar.update)
        frozen = frozen or scores
        gain, half = paired_interval(scores.accuracy, frozen.accuracy)
        mean_steps = sum(own_steps(base, init, episodes, encoded=encoded)) / count if requested is None else requested
        rows.append(
            {"initialization": init.name, "steps": mean_steps, "accuracy": scores.mean, "over_frozen": gain, "interval": half}
            | {"seconds_per_task": scores.seconds_per_task}
        )
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    click.echo(f"{ways}-way {shots}-shot, {count} episodes, float32")
    click.echo(f"{'initialization':<20} {'steps':>5} {'accuracy':>9} {'over frozen (95 %)':>20} {'s/task':>9}")
    for row in rows:
        over = f"{100 * row['over_frozen']:+.2f} ± {100 * row['interval']:.2f}"
        click.echo(
            f"{row['initialization']:<20} {row['steps']:>5g} {row['accuracy']:>9.2%} {over:>20} {row['seconds_per_task']:>9.3f}"
        )


if __name__ == "__main__":
    main()
