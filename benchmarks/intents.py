"""`make bench-intents`: run the published few-shot intent protocol.

The protocol is that of ProtAugment (Dopierre et al. 2021).

There are four data sets with five class splits each, 5-way 1-shot and 5-shot, and 600 episodes per split. Each method trains only
on the training classes of one split, and stops early by its score on the split's validation classes. The methods are frozen
prototypes, ProtoNet-LoRA, MAML-LoRA (first order, cross-entropy on a linear head) and ours (the inner loop of the default recipe).
Frozen prototypes and ours also run with the label words among the examples; the published results do not use label words.

The benchmark takes about fifteen core-hours in float32. It can be resumed: what each method has finished on each split is stored in
`results/parts/intents.json`, with the results. If a method has not finished all splits, the report states their number. To share
the work between processes, use `--set`, `--split` and `--method`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from tqdm import tqdm

from benchmarks.folds import DEFAULT_RECIPE
from benchmarks.record import RUNS, Progress, Row, difference_rows, write
from benchmarks.systems import with_label_words
from metatrain.artifacts.baselines import frozen_prototypes
from metatrain.artifacts.initialization import Initialization, load_initialization
from metatrain.cli import train_with_progress
from metatrain.inner.config import InnerConfig
from metatrain.inner.encoded import Encoded
from metatrain.meta.algorithms import FOMAML, ProtoNet
from metatrain.models.base import Base
from metatrain.models.loading import load_base
from metatrain.tasks.episodes import EpisodeSampler, EpisodeShape
from metatrain.training.evaluate import evaluate, evaluate_prototypes
from metatrain.training.outer_step import OuterConfig
from metatrain.training.recipe import (
    ClassList,
    DataSection,
    EpisodesSection,
    Recipe,
    Source,
    ValidationSection,
    read_recipe,
)

SETS = ("banking77", "clinc150", "hwu64", "liu54")
SPLITS = ("01", "02", "03", "04", "05")
SHOTS = (1, 5)
WAYS, QUERIES = 5, 5
FROZEN, PROTONET, MAML, OURS = "frozen prototypes", "ProtoNet-LoRA", "MAML-LoRA", "quickstudy"
FROZEN_WORDS, OURS_WORDS = "frozen prototypes, label words", "quickstudy, label words"
WITH_WORDS = (FROZEN_WORDS, OURS_WORDS)
METHODS = (FROZEN, PROTONET, MAML, OURS, FROZEN_WORDS, OURS_WORDS)
BASELINES = METHODS[:3]
"""The methods with which the remaining ones in `METHODS` are compared."""


def split_recipe(name: str, split: str, method: str) -> Recipe:
    """Return the recipe that trains one method on one class split of one data set."""
    recipe = read_recipe(DEFAULT_RECIPE)

    def part(which: str) -> tuple[Source, ...]:
        return (Source(path=f"{name}/full.jsonl.gz", split=ClassList(file=f"{name}/splits.json", id=split, part=which)),)

    change: dict[str, object] = {
        "name": f"{name}-{split}-{method.split('-')[0].lower()}",
        "base": recipe.base.model_copy(update={"precision": "auto"}),
        "inner": recipe.inner.model_copy(update={"in_parts": None}),  # five classes never need to be split into parts
        "data": DataSection(train=part("train"), valid=part("valid"), held_out=part("test")),
        "episodes": EpisodesSection(ways=(5, 15), shots=(1, 5), queries=5, near_miss=0.25, rows=400),
        "outer": OuterConfig(steps=60, tasks=4, learning_rate=1e-3, rate_learning_rate=0.02, clip=1.0, warmup=20, decay="cosine"),
        "validation": ValidationSection(every=15, episodes=80, shots=SHOTS, patience=2),
    }
    if method == PROTONET:
        change["algorithm"] = ProtoNet(learned=("theta", "scale"))
        del change["inner"]
    if method == MAML:
        change["algorithm"] = FOMAML(learned=("theta", "rates", "scale"))
        change["inner"] = InnerConfig(optimizer="adam", steps=3, rows_per_step=recipe.inner.rows_per_step)
        change["start"] = recipe.start.model_copy(update={"rate": 3e-3})
    kept = {name: getattr(recipe, name) for name in recipe.model_fields_set if name != "inner"}
    return Recipe.model_validate({**kept, **change})


@dataclass(frozen=True)
class Part:
    """One method on one class split of the data set `name`."""

    method: str
    split: str
    name: str

    @property
    def trained_as(self) -> str | None:
        """The method whose trained initialization this part uses; None if it needs no training."""
        return None if self.method in (FROZEN, FROZEN_WORDS) else OURS if self.method == OURS_WORDS else self.method


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--episodes", "count", default=600, show_default=True)
@click.option("--set", "names", type=click.Choice(SETS), multiple=True)
@click.option("--split", "splits", type=click.Choice(SPLITS), multiple=True)
@click.option("--method", "methods", type=click.Choice(METHODS), multiple=True)
@click.option("--report", is_flag=True, help="Run nothing; write the results of the finished parts.")
def main(data: Path, count: int, names: tuple[str, ...], splits: tuple[str, ...], methods: tuple[str, ...], report: bool) -> None:
    progress = Progress("intents", kept=True)
    if not report:
        base = load_base()
        encoded = Encoded(base)
        for group in ([m for m in METHODS if m != MAML], [MAML]):  # the slowest method last
            for split in splits or SPLITS:
                for name in names or SETS:
                    for method in [m for m in group if m in (methods or METHODS)]:
                        run(base, encoded, progress, Part(method, split, name), count, data)
    rows = _rows(progress, count)
    _print(rows)
    if report or not (names or splits or methods):
        print(f"\nwrote {write('intents', rows, episodes=count)}")


def run(base: Base, encoded: Encoded, progress: Progress, part: Part, count: int, data: Path) -> None:
    """Evaluate a part, and store the number of right answers in each episode of the split's test classes.

    Numbers that are already stored are not computed again. Trains the method first if it has not been trained on this split.
    """
    init: Initialization | None = None
    for shots in SHOTS:
        key = _key(part, shots, count)
        if progress.get(key) is None:
            init = init or initialization(base, part, data)
            scores = accuracies(base, encoded, init, part, shots, count, data)
            progress.put(key, [round(score * QUERIES * WAYS) for score in scores])


def _key(part: Part, shots: int, count: int) -> str:
    recipe = "" if part.trained_as is None else split_recipe(part.name, part.split, part.trained_as).digest
    return json.dumps([part.name, part.split, part.method, shots, count, recipe])


def initialization(base: Base, part: Part, data: Path) -> Initialization:
    """Return the part's initialization, and train it first if it has not been trained.

    Raises click.ClickException if it was trained with another recipe.
    """
    if part.trained_as is None:
        return frozen_prototypes(base)
    recipe = split_recipe(part.name, part.split, part.trained_as)
    folder = RUNS / "intents" / recipe.name
    if not (folder / recipe.name / "initialization.json").is_file():
        train_with_progress(recipe, data, folder)
    init = load_initialization(folder / recipe.name, base)
    if Recipe.model_validate(init.provenance["recipe"]) != recipe:
        raise click.ClickException(f"{folder} was trained with another recipe than the present one; move it away")
    return init


def accuracies(
    base: Base, encoded: Encoded, init: Initialization, part: Part, shots: int, count: int, data: Path
) -> Sequence[float]:
    """Return the accuracy on each episode of the split's test classes."""
    source = Source(path=f"{part.name}/full.jsonl.gz", split=ClassList(file=f"{part.name}/splits.json", id=part.split, part="test"))
    sampler = EpisodeSampler([source.read(data)], seed=1234)
    episodes = [sampler.episode(i, EpisodeShape(WAYS, shots, QUERIES)) for i in range(count)]
    if part.method in WITH_WORDS:
        episodes = [with_label_words(episode) for episode in episodes]
    if init.inner.steps_for(len(episodes[0].support), WAYS) == 0:
        return evaluate_prototypes(base, init, episodes, encoded=encoded)
    with tqdm(total=count, desc=f"{part.name} {part.split} {shots}-shot {init.name}", leave=False, disable=None) as bar:
        return evaluate(base, init, episodes, encoded=encoded, progress=bar.update).accuracy


def _rows(progress: Progress, count: int) -> list[Row]:
    """Return the accuracies of the methods, and the differences between methods.

    The accuracy of a method is over the splits that it has finished on all four data sets. If these are not all five, their number
    is added to the method's name. The difference of two methods is over the splits that both have finished.
    """

    def answers(method: str, split: str, name: str, shots: int) -> list[float] | None:
        kept = progress.get(_key(Part(method, split, name), shots, count))
        return None if kept is None else [right / (QUERIES * WAYS) for right in kept]

    def done(method: str, shots: int) -> list[str]:
        return [split for split in SPLITS if all(answers(method, split, name, shots) is not None for name in SETS)]

    def scores(method: str, splits: Sequence[str], names: Sequence[str], shots: int) -> list[float]:
        return [a for name in names for split in splits for a in answers(method, split, name, shots) or ()]

    rows = []
    for shots in SHOTS:
        for method in METHODS:
            splits = done(method, shots)
            if not splits:
                continue
            system = method if len(splits) == len(SPLITS) else f"{method} ({len(splits)} of {len(SPLITS)} splits)"
            means = []
            for name in SETS:
                set_scores = scores(method, splits, [name], shots)
                means.append(sum(set_scores) / len(set_scores))
                rows.append(Row(f"{name}, 5-way {shots}-shot", system, "accuracy", means[-1], "share"))
            rows.append(Row(f"mean, 5-way {shots}-shot", system, "accuracy", sum(means) / len(means), "share"))
            for other in BASELINES[: BASELINES.index(method)] if method in BASELINES else BASELINES:
                common = [split for split in done(other, shots) if split in splits]
                for case, names in (*((name, (name,)) for name in SETS), ("mean", SETS)) if common else ():
                    left, right = (scores(m, common, names, shots) for m in (method, other))
                    rows += difference_rows(f"{case}, 5-way {shots}-shot", system, other, left, right)
    return rows


def _print(rows: list[Row]) -> None:
    values = {(row.case, row.system, row.metric): row.value for row in rows}
    for shots in SHOTS:
        print(f"\n5-way {shots}-shot" + " " * 40 + "".join(f"{name:>22}" for name in (*SETS, "mean")))
        for method in dict.fromkeys(row.system for row in rows if row.case == f"mean, 5-way {shots}-shot"):
            cells = []
            for name in (*SETS, "mean"):
                case = f"{name}, 5-way {shots}-shot"
                over = values.get((case, method, f"over {FROZEN}"))
                half = values.get((case, method, f"over {FROZEN}, 95 % interval, half"))
                extra = "" if over is None or half is None else f" ({100 * over:+.1f} ± {100 * half:.1f})"
                cells.append(f"{100 * values[case, method, 'accuracy']:.1f}{extra}")
            print(f"{method:<52}" + "".join(f"{cell:>22}" for cell in cells))


if __name__ == "__main__":
    main()
