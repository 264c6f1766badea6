"""`make bench-intents`: the published few-shot intent protocol (Dopierre et al. 2021, ProtAugment).

Four data sets, five class splits each, 5-way 1-shot and 5-shot, 600 episodes a split; training on that split's training classes
alone, stopped by its validation classes. Frozen prototypes, ProtoNet-LoRA, MAML-LoRA (first order, cross-entropy on a linear head)
and ours (the inner loop of the default recipe); the first and the last also with the label words among the examples, at 1-shot,
which the published rows do not look at. Resumes by split and method; `--set`, `--split` and `--method` share the work between
processes.
"""

import json
from pathlib import Path

import click
from tqdm import tqdm

from benchmarks.folds import DEFAULT_RECIPE
from benchmarks.record import RUNS, Progress, Row, write
from benchmarks.systems import with_label_words
from metatrain.algorithms import ProtoNet
from metatrain.artifact import Initialization, load_initialization
from metatrain.base.text import TextBase, load_text_base
from metatrain.baselines import frozen_prototypes
from metatrain.cli import train_with_progress
from metatrain.episode import EpisodeSampler, EpisodeShape, manifest_digest
from metatrain.evaluate import evaluate, evaluate_prototypes, paired_interval
from metatrain.inner import InnerConfig
from metatrain.outer_loop import OuterConfig
from metatrain.recipe import (
    DataSection,
    EpisodesSection,
    Recipe,
    Source,
    Split,
    ValidationSection,
    read_recipe,
)
from metatrain.taskbatch import Tokenized

SETS = ("banking77", "clinc150", "hwu64", "liu54")
SPLITS = ("01", "02", "03", "04", "05")
SHOTS = (1, 5)
FROZEN, PROTONET, MAML, OURS = "frozen prototypes", "ProtoNet-LoRA", "MAML-LoRA", "quickstudy"
FROZEN_WORDS, OURS_WORDS = "frozen prototypes, label words", "quickstudy, label words"
WITHOUT_WORDS = (FROZEN, PROTONET, MAML, OURS)
METHODS = (FROZEN, PROTONET, MAML, OURS, FROZEN_WORDS, OURS_WORDS)


def split_recipe(name: str, split: str, method: str) -> Recipe:
    """One method's training run on one class split of one data set."""
    recipe = read_recipe(DEFAULT_RECIPE)

    def part(which: str) -> tuple[Source, ...]:
        return (Source(path=f"{name}/full.jsonl.gz", split=Split(file=f"{name}/splits.json", id=split, part=which)),)

    change: dict[str, object] = {
        "name": f"{name}-{split}-{method.split('-')[0].lower()}",
        "data": DataSection(train=part("train"), valid=part("valid"), held_out=part("test")),
        "episodes": EpisodesSection(ways=(5, 15), shots=(1, 5), queries=5, near_miss=0.25, rows=400),
        "outer": OuterConfig(steps=60, tasks=4, learning_rate=1e-3, rate_learning_rate=0.02),
        "validation": ValidationSection(every=15, episodes=80, shots=SHOTS, patience=2),
    }
    if method == PROTONET:
        change["algorithm"] = ProtoNet()
    if method == MAML:
        change["inner"] = InnerConfig(steps=3, rows_per_step=recipe.inner.rows_per_step)
        change["start"] = recipe.start.model_copy(update={"rate": 3e-3})
    return recipe.model_copy(update=change)


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--episodes", "count", default=600, show_default=True)
@click.option("--set", "names", type=click.Choice(SETS), multiple=True)
@click.option("--split", "splits", type=click.Choice(SPLITS), multiple=True)
@click.option("--method", "methods", type=click.Choice(METHODS), multiple=True)
def main(data: Path, count: int, names: tuple[str, ...], splits: tuple[str, ...], methods: tuple[str, ...]) -> None:
    base = load_text_base()
    tokenized, progress = Tokenized(base), Progress("intents")
    results: dict[tuple[str, int, str], list[float]] = {}
    for split in splits or SPLITS:
        for name in names or SETS:
            for method in methods or METHODS:
                init = initialization(base, name, split, method, data)
                for shots in SHOTS if method in WITHOUT_WORDS else SHOTS[:1]:
                    words = method not in WITHOUT_WORDS
                    scores = accuracies(base, tokenized, progress, init, name, split, shots, count, data, words)
                    results.setdefault((name, shots, method), []).extend(scores)
    rows = _rows(results, names or SETS, methods or METHODS)
    _print(rows, names or SETS, methods or METHODS)
    if not (names or splits or methods):
        print(f"\nwrote {write('intents', rows, episodes=count, precision=str(base.dtype))}")


def initialization(base: TextBase, name: str, split: str, method: str, data: Path) -> Initialization:
    """Trained, if it is not there yet."""
    if method in (FROZEN, FROZEN_WORDS):
        return frozen_prototypes(base)
    if method == OURS_WORDS:
        method = OURS
    recipe = split_recipe(name, split, method)
    folder = RUNS / "intents" / recipe.name
    if not (folder / recipe.name / "initialization.json").is_file():
        train_with_progress(recipe, data, folder)
    init = load_initialization(folder / recipe.name, base)
    if Recipe.model_validate(init.provenance["recipe"]) != recipe:
        raise click.ClickException(f"{folder} was trained by another recipe than this is now; move it away")
    return init


def accuracies(
    base: TextBase,
    tokenized: Tokenized,
    progress: Progress,
    init: Initialization,
    name: str,
    split: str,
    shots: int,
    count: int,
    data: Path,
    words: bool,
) -> list[float]:
    """Of each episode of the split's test classes."""
    source = Source(path=f"{name}/full.jsonl.gz", split=Split(file=f"{name}/splits.json", id=split, part="test"))
    sampler = EpisodeSampler([source.read(data)], seed=1234)
    episodes = [sampler.episode(i, EpisodeShape(5, shots, 5)) for i in range(count)]
    if words:
        episodes = [with_label_words(episode) for episode in episodes]
    key = json.dumps([name, split, shots, init.digest, str(base.dtype), manifest_digest(episodes)])
    if progress.get(key) is None:
        if init.inner.steps_for(len(episodes[0].support), 5) == 0:
            progress.put(key, evaluate_prototypes(base, init, episodes, tokenized=tokenized))
        else:
            with tqdm(total=count, desc=f"{name} {split} {shots}-shot {init.name}", leave=False, disable=None) as bar:
                progress.put(key, evaluate(base, init, episodes, tokenized=tokenized, progress=bar.update).accuracy)
    found: list[float] = progress.get(key)
    return found


def _rows(results: dict[tuple[str, int, str], list[float]], names: tuple[str, ...], methods: tuple[str, ...]) -> list[Row]:
    rows = []
    for shots in SHOTS:
        for method in [m for m in methods if (names[0], shots, m) in results]:
            per_set = [sum(results[name, shots, method]) / len(results[name, shots, method]) for name in names]
            rows.append(Row(f"mean, 5-way {shots}-shot", method, "accuracy", sum(per_set) / len(per_set), "share"))
            for name, value in zip(names, per_set, strict=True):
                rows.append(Row(f"{name}, 5-way {shots}-shot", method, "accuracy", value, "share"))
                if method != FROZEN and FROZEN in methods:
                    pair = paired_interval(results[name, shots, method], results[name, shots, FROZEN])
                    rows.append(Row(f"{name}, 5-way {shots}-shot", method, "over frozen", pair[0], "share"))
                    rows.append(Row(f"{name}, 5-way {shots}-shot", method, "over frozen, 95 % interval, half", pair[1], "share"))
    return rows


def _print(rows: list[Row], names: tuple[str, ...], methods: tuple[str, ...]) -> None:
    values = {(row.case, row.system, row.metric): row.value for row in rows}
    for shots in SHOTS:
        print(f"\n5-way {shots}-shot" + " " * 20 + "".join(f"{name:>22}" for name in (*names, "mean")))
        for method in [m for m in methods if (f"mean, 5-way {shots}-shot", m, "accuracy") in values]:
            cells = []
            for name in (*names, "mean"):
                case = f"{name}, 5-way {shots}-shot"
                over = values.get((case, method, "over frozen"))
                half = values.get((case, method, "over frozen, 95 % interval, half"))
                extra = "" if over is None or half is None else f" ({100 * over:+.1f} ± {100 * half:.1f})"
                cells.append(f"{100 * values[case, method, 'accuracy']:.1f}{extra}")
            print(f"{method:<32}" + "".join(f"{cell:>22}" for cell in cells))


if __name__ == "__main__":
    main()
