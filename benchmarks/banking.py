"""`make bench-banking`: adapt to all 77 classes of BANKING77, with 5 and 10 examples each.

The queries are the utterances that are in neither support set. Our initialization is that of the fold `banking77`
(`benchmarks.folds`), which was trained without BANKING77. Seconds are from POST to ready.

SetFit gets the same examples. By default it trains on every pair of examples, which would be half a million pairs here, so it
trains on 20 pairings for each example, as in its paper (Tunstall et al. 2022, arXiv:2209.11055). This takes an hour, so the result
is kept in `results/parts/banking.json`, with the machine on which the seconds were measured.
"""

import json
import shutil
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from quickstudy import Client
from tqdm import tqdm

from benchmarks.folds import fold_initialization
from benchmarks.record import Progress, Row, machine, write
from benchmarks.systems import SETFIT_VERSION, setfit
from metatrain.tasks.table import read_table
from service.running.demo import served

SHOTS = (5, 10)
Pairs = list[tuple[str, str]]


def draw(data: Path, shots: int) -> tuple[Pairs, Pairs]:
    """Draw a support set with `shots` examples of each class, and return it with the queries.

    The examples of each class are shuffled with a fixed seed. The first `shots` are support, and all after the first 10 are
    queries. So the 5-shot examples are among the 10-shot ones, and the queries are the same for both.
    """
    dataset = read_table(data / "banking77" / "full.jsonl.gz")
    rng = np.random.default_rng(0)
    support: Pairs = []
    query: Pairs = []
    used_texts: set[str] = set()
    for label, texts in dataset.texts.items():
        shuffled = [texts[i] for i in rng.permutation(len(texts)) if texts[i] not in used_texts]
        used_texts |= set(shuffled)
        support += [(text, label) for text in shuffled[:shots]]
        query += [(text, label) for text in shuffled[max(SHOTS) :]]
    return support, query


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--steps", type=int, multiple=True, help="Further numbers of inner steps to try for ours.")
@click.option(
    "--setfit/--no-setfit",
    "with_setfit",
    default=True,
    help="Run SetFit, which takes most of the time. Its result is kept for later runs.",
)
def main(data: Path, steps: tuple[int, ...], with_setfit: bool) -> None:
    rows: list[Row] = []
    progress = Progress("banking", kept=True)
    with tempfile.TemporaryDirectory() as folder:
        ours = fold_initialization("banking77")
        shutil.copytree(ours, Path(folder) / "initializations" / ours.name)
        settings = {"INITIALIZATIONS_DIR": str(Path(folder) / "initializations")}
        with served(Path(folder) / "data", settings) as url, Client(url, api_key="", timeout=300) as quickstudy:
            for shots in SHOTS:
                support, query = draw(data, shots)
                systems: list[tuple[str, int | None, bool]] = [
                    ("frozen-prototypes", None, False),
                    ("lora-from-zero", None, False),
                    (ours.name, None, False),
                    (ours.name, None, True),
                    *((ours.name, n, False) for n in steps),
                ]
                for name, step_count, words in systems:
                    began = time.perf_counter()
                    adapter = quickstudy.adapt(support, initialization=name, steps=step_count, label_words=words, wait=300)
                    seconds = time.perf_counter() - began
                    hits: list[bool] = []
                    for start in tqdm(range(0, len(query), 200), desc=name, leave=False, disable=None):
                        part = query[start : start + 200]
                        predictions = quickstudy.predict(adapter, [text for text, _ in part])
                        hits += [p.label == label for p, (_, label) in zip(predictions, part, strict=True)]
                    system = name + (f", {step_count} steps" if step_count is not None else "") + (", label words" if words else "")
                    rows += _show(f"77-way {shots}-shot, {len(query)} queries", system, seconds, float(np.mean(hits)))
    for shots in SHOTS:
        support, query = draw(data, shots)
        key = json.dumps(["setfit", SETFIT_VERSION, shots, len(query)])
        if progress.get(key) is None and with_setfit:
            labels = {label: c for c, label in enumerate(dict.fromkeys(label for _, label in support))}
            answer = setfit([(text, labels[label]) for text, label in support], [text for text, _ in query], iterations=20)
            right = [p == labels[label] for p, (_, label) in zip(answer.predicted, query, strict=True)]
            progress.put(key, {"seconds": answer.seconds, "accuracy": float(np.mean(right)), "machine": machine()})
        if (kept := progress.get(key)) is not None:
            system = "SetFit, 20 pairings an example" + ("" if kept["machine"] == machine() else f" (on {kept['machine']})")
            rows += _show(f"77-way {shots}-shot, {len(query)} queries", system, kept["seconds"], kept["accuracy"])
        else:
            print("results not written: SetFit has not been run on these examples; run again with --setfit")
            return
    print(f"\nwrote {write('banking', rows)}")


def _show(case: str, system: str, seconds: float, accuracy: float) -> list[Row]:
    print(f"{case:<32} {system:<32} {seconds:>8.1f} s {accuracy:>8.2%}", flush=True)
    return [Row(case, system, "POST to ready", seconds, "s"), Row(case, system, "accuracy", accuracy, "share")]


if __name__ == "__main__":
    main()
