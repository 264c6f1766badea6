"""`make bench-packing`: compare inner loops and meta-gradients on packed and on padded rows.

Both run in one process and take turns, on the same support sets: 5-way 5- and 10-shot of the shipped task set, alone and 16 at
once, and with `--data` all 77 classes of BANKING77 with 10 examples each. Padded rows are those of versions before packing: in
buckets of similar length. The inner loop is that of the initialization `default`, as a worker runs it, without HTTP, queue and
store. The meta-gradients are those of MAML-LoRA (r=8 on query and value), three inner steps of SGD on a linear head from
prototypes.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from benchmarks.banking import draw
from benchmarks.record import Row, write
from metatrain.artifacts.catalog import SHIPPED
from metatrain.artifacts.initialization import load_initialization
from metatrain.deltas import LoRAConfig
from metatrain.inner.config import InnerConfig
from metatrain.inner.encoded import Encoded
from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import Outer, start_rates
from metatrain.inner.supervised import Supervised
from metatrain.inner.together import adapt_each
from metatrain.meta.differentiation import Differentiation
from metatrain.meta.metagrad import meta_gradient
from metatrain.models.backbone import Attention
from metatrain.models.base import Base
from metatrain.models.loading import load_base
from metatrain.readouts.classes import ClassReadout
from metatrain.readouts.heads import HEAD_LEAVES
from metatrain.tasks.episodes import Episode, EpisodeSampler, EpisodeShape
from metatrain.tasks.table import STARTER, read_table

PACKED, PADDED = "packed", "padded"
SHOTS, AT_ONCE, STEPS = (5, 10), 16, 3
QUERIES = {5: 5, 10: 1}  # by shots: as many as the classes have texts for
MODES = {
    "unrolled": Differentiation(mode="unrolled"),
    "adjoint": Differentiation(mode="adjoint", product="reverse"),
}
Pairs = Sequence[tuple[str, int]]


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--data", type=click.Path(path_type=Path), default=Path("../shared/data"), show_default=True)
def main(rounds: int, data: Path) -> None:
    rows: list[Row] = []
    bases = _bases("auto")
    for shots in SHOTS:
        for tasks in (1, AT_ONCE):
            supports = [episode.support for episode in _episodes(tasks, shots)]
            rows += _measured(f"inner loop, 5-way {shots}-shot, {tasks} at once", bases, _inner_loop, supports, rounds)
    if (data / "banking77" / "full.jsonl.gz").is_file():
        pairs, _ = draw(data, 10)
        labels = sorted({label for _, label in pairs})
        support = [(text, labels.index(label)) for text, label in pairs]
        rows += _measured("inner loop, 77-way 10-shot, 1 at once", bases, _inner_loop, [support], max(1, rounds // 3))
    eager = _bases("eager")
    for name, mode in MODES.items():
        episodes = _episodes(2, 5)
        rows += _measured(f"meta-gradient, {name}, 2 tasks", eager, _meta_gradient(mode), episodes, rounds)
    print(f"\nwrote {write('packing', rows, rounds=rounds)}")


def _bases(attention: Attention) -> dict[str, Base]:
    packed, padded = (load_base(precision="float32", attention=attention) for _ in range(2))
    assert packed.backbone.packs
    with padded.backbone.padded_rows("for comparison"):
        return {PACKED: packed, PADDED: padded}


def _episodes(count: int, shots: int) -> list[Episode]:
    sampler = EpisodeSampler([read_table(STARTER)], seed=7)
    return [sampler.episode(number, EpisodeShape(5, shots, QUERIES[shots])) for number in range(count)]


def _inner_loop(base: Base, supports: Sequence[Pairs]) -> Callable[[], object]:
    init = load_initialization(SHIPPED / "default", base)

    def run() -> object:
        tasks = init.tasks(base, Encoded(base).support(supports))
        return adapt_each(tasks, init.outer(base.device), init.inner.update)

    return run


def _meta_gradient(mode: Differentiation) -> Callable[[Base, Sequence[Episode]], Callable[[], object]]:
    def prepared(base: Base, episodes: Sequence[Episode]) -> Callable[[], object]:
        kind, encoded = base.attach(LoRAConfig()), Encoded(base)
        theta = kind.initial(torch.Generator().manual_seed(0), b_std=0.01)
        outer = Outer(theta, start_rates([*theta, *HEAD_LEAVES], 0.05), torch.tensor(16.0))

        def run() -> object:
            batch = Supervised(base, kind, ClassReadout, InnerConfig(steps=STEPS), *encoded.batch(episodes))
            return meta_gradient(batch, outer, Optimizer("sgd"), mode)

        return run

    return prepared


def _measured(
    case: str, bases: dict[str, Base], prepare: Callable[[Base, Any], Callable[[], object]], tasks: Any, rounds: int
) -> list[Row]:
    calls = {name: prepare(base, tasks) for name, base in bases.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in tqdm(range(rounds + 1), desc=case, leave=False, disable=None):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - began)
    ratio = statistics.median(a / b for a, b in zip(times[PADDED], times[PACKED], strict=True))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{case:<44} padded {medians[PADDED]:.2f} s   packed {medians[PACKED]:.2f} s   speed {ratio:.2f}")
    found = [Row(case, name, "median", median, "s") for name, median in medians.items()]
    return [*found, Row(case, PACKED, "speed over padded", ratio, "")]


if __name__ == "__main__":
    main()
