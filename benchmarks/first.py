"""`make bench-first`: the published test classes (class split 01) of four intent sets, of which the default initialization has seen
neither text nor class: frozen prototypes, plain LoRA from zero, the initialization at 0 steps and at its own number, on the same
episodes. Resumes."""

import json
from pathlib import Path

import click
from tqdm import tqdm

from benchmarks.record import Progress, Row, write
from metatrain.artifact import Initialization, load_initialization
from metatrain.base.text import load_text_base
from metatrain.baselines import frozen_prototypes, lora_from_zero
from metatrain.cli import DEFAULT_INITIALIZATION
from metatrain.episode import Episode, EpisodeSampler, EpisodeShape, manifest_digest
from metatrain.evaluate import Scores, evaluate, paired_interval
from metatrain.recipe import Source, Split
from metatrain.taskbatch import Tokenized

SETS = ("banking77", "clinc150", "hwu64", "liu54")
SHOTS = (1, 5)


def test_episodes(name: str, data: Path, shots: int, count: int) -> list[Episode]:
    source = Source(path=f"{name}/full.jsonl.gz", split=Split(file=f"{name}/splits.json", id="01", part="test"))
    sampler = EpisodeSampler([source.read(data)], seed=1234)
    return [sampler.episode(i, EpisodeShape(5, shots, 5)) for i in range(count)]


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of the four sets.")
@click.option("--initialization", type=click.Path(path_type=Path), default=DEFAULT_INITIALIZATION)
@click.option("--episodes", "count", default=200, show_default=True)
@click.option("--set", "names", type=click.Choice(SETS), multiple=True, help="Only this set, to share the work between processes.")
def main(data: Path, initialization: Path, count: int, names: tuple[str, ...]) -> None:
    base = load_text_base(precision="float32")
    frozen, plain = frozen_prototypes(base), lora_from_zero(base)
    systems: list[tuple[str, Initialization, int]] = [
        ("frozen prototypes", frozen, 0),
        ("plain LoRA from zero", plain, plain.inner.steps),
    ]
    init = load_initialization(initialization, base)
    systems += [("default, 0 steps", init, 0), (f"default, {init.inner.steps} steps", init, init.inner.steps)]
    progress, tokenized, rows = Progress("first"), Tokenized(base), []
    for shots in SHOTS:
        over_sets: dict[str, list[float]] = {}
        for name in names or SETS:
            episodes = test_episodes(name, data, shots, count)
            case = f"{name} 5-way {shots}-shot"
            for system, init, steps in systems:
                key = json.dumps([case, system, init.digest, steps, manifest_digest(episodes)])
                if progress.get(key) is None:
                    with tqdm(total=count, desc=f"{case}, {system}", leave=False, disable=None) as bar:
                        scores = evaluate(base, init, episodes, steps=steps, tokenized=tokenized, progress=bar.update)
                    progress.put(key, [scores.accuracy, scores.seconds_per_task])
                scores = Scores(*progress.get(key))
                over_sets.setdefault(system, []).extend(scores.accuracy)
                reference = over_sets["frozen prototypes"][-count:]
                rows += _rows(case, system, scores.accuracy, reference)
                rows.append(Row(case, system, "seconds to adapt a task, 8 together", scores.seconds_per_task, "s"))
        for system, accuracy in over_sets.items():
            rows += _rows(f"mean of four 5-way {shots}-shot", system, accuracy, over_sets["frozen prototypes"])
    _print(rows)
    if not names:
        print(f"\nwrote {write('first', rows, episodes=count)}")


def _rows(case: str, system: str, accuracy: "tuple[float, ...] | list[float]", reference: list[float]) -> list[Row]:
    difference, half = paired_interval(accuracy, reference)
    return [
        Row(case, system, "accuracy", sum(accuracy) / len(accuracy), "share"),
        Row(case, system, "over frozen", difference, "share"),
        Row(case, system, "95 % interval of that, half", half, "share"),
    ]


def _print(rows: list[Row]) -> None:
    values = {(row.case, row.system, row.metric): row.value for row in rows}
    print(f"{'case':<28} {'system':<22} {'accuracy':>9} {'over frozen':>15}")
    for case, system in dict.fromkeys((row.case, row.system) for row in rows):
        accuracy = values[case, system, "accuracy"]
        over, half = values[case, system, "over frozen"], values[case, system, "95 % interval of that, half"]
        print(f"{case:<28} {system:<22} {accuracy:>9.2%} {100 * over:>+7.2f} ± {100 * half:.2f}")


if __name__ == "__main__":
    main()
