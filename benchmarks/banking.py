"""`make bench-banking`: all 77 classes of BANKING77, 10 examples each, through the service: seconds to ready, and accuracy on the
remaining utterances. The default initialization has trained on 25 of the 77 classes (class split 01), so accuracy is also given
on the 27 test classes' utterances alone, all 77 labels being candidates."""

import tempfile
import time
from pathlib import Path

import click
import numpy as np
from tqdm import tqdm

from benchmarks.record import Row, write
from metatrain.data.jsonl import read_jsonl
from metatrain.recipe import Source, Split
from service.client import Client
from service.demo import served

SHOTS = 10


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--initialization", "names", multiple=True, default=("frozen-prototypes", "lora-from-zero", "default"))
@click.option("--queries", default=20, show_default=True, help="Per class.")
def main(data: Path, names: tuple[str, ...], queries: int) -> None:
    dataset = read_jsonl(data / "banking77" / "full.jsonl.gz")
    split = Source(path="banking77/full.jsonl.gz", split=Split(file="banking77/splits.json", id="01", part="test"))
    unseen = set(split.read(data).texts)
    rng = np.random.default_rng(0)
    support: list[tuple[str, str]] = []
    query: list[tuple[str, str]] = []
    taken: set[str] = set()
    for label, texts in dataset.texts.items():
        mixed = [texts[i] for i in rng.permutation(len(texts)) if texts[i] not in taken]
        taken |= set(mixed)
        support += [(text, label) for text in mixed[:SHOTS]]
        query += [(text, label) for text in mixed[SHOTS : SHOTS + queries]]
    rows, case = [], f"77-way {SHOTS}-shot, {len(query)} queries"
    print(f"{case}\n{'':<20} {'POST to ready':>14} {'accuracy':>9} {'27 test classes':>16}")
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as url, Client(url, timeout=300) as quickstudy:
        for name in names:
            began = time.perf_counter()
            adapter = quickstudy.adapt(support, initialization=name, wait=200, on_progress=lambda state: None)
            seconds = time.perf_counter() - began
            hits: list[bool] = []
            for start in tqdm(range(0, len(query), 200), desc=name, leave=False, disable=None):
                part = query[start : start + 200]
                predictions = quickstudy.predict(adapter, [text for text, _ in part])
                hits += [p.label == label for p, (_, label) in zip(predictions, part, strict=True)]
            own = [hit for hit, (_, label) in zip(hits, query, strict=True) if label in unseen]
            accuracy, on_unseen = sum(hits) / len(hits), sum(own) / len(own)
            print(f"{name:<20} {seconds:>12.1f} s {accuracy:>9.2%} {on_unseen:>16.2%}")
            rows += [
                Row(case, name, "POST to ready", seconds, "s"),
                Row(case, name, "accuracy", accuracy, "share"),
                Row(case, name, "accuracy on the 27 test classes", on_unseen, "share"),
            ]
    print(f"\nwrote {write('banking', rows)}")


if __name__ == "__main__":
    main()
