"""`make bench-ready`: from POST to ready for 5-way 5-shot at rest, next to the bare inner loop in one process.

What is above the inner loop is HTTP, record, queue and store. Every request has a new support set, so nothing is answered from
an adapter that is there already. The bare loop runs the same support sets, before the service starts, with the same threads.
"""

import statistics
import tempfile
import time
from pathlib import Path

import click
from tqdm import tqdm

from benchmarks.record import Row, write
from metatrain.data.jsonl import STARTER, read_jsonl
from metatrain.episode import Episode, EpisodeSampler, EpisodeShape
from service.client import Client
from service.demo import served
from worker.messages import JobRecipe
from worker.runtime import load_runtime
from worker.settings import WorkerSettings, read_settings

CASE = "5-way 5-shot"


def support_of(episode: Episode) -> list[tuple[str, str]]:
    return [(text, episode.labels[c]) for text, c in episode.support]


@click.command()
@click.option("--requests", "count", default=30, show_default=True)
@click.option("--initialization", default="default", show_default=True)
def main(count: int, initialization: str) -> None:
    sampler = EpisodeSampler([read_jsonl(STARTER)], seed=99)
    episodes = [sampler.episode(i, EpisodeShape(5, 5, 1)) for i in range(count + 3)]
    bare = _bare(episodes, initialization)[3:]
    ready, inner, queue = _served(episodes, initialization)
    above = [r - i for r, i in zip(ready[3:], inner[3:], strict=True)]
    measured = {
        "bare inner loop in one process": bare,
        "POST to ready": ready[3:],
        "of that, the inner loop": inner[3:],
        "of that, the queue": queue[3:],
        "above the inner loop": above,
    }
    rows = []
    print(f"{CASE}, {count} requests at rest, milliseconds\n{'':<32} {'median':>8} {'p95':>8}")
    for system, values in measured.items():
        median, p95 = statistics.median(values), sorted(values)[int(0.95 * len(values))]
        print(f"{system:<32} {median:>8.1f} {p95:>8.1f}")
        rows += [Row(CASE, system, "median", median, "ms"), Row(CASE, system, "p95", p95, "ms")]
    print(f"\nwrote {write('ready', rows, requests=count, initialization=initialization)}")


def _bare(episodes: list[Episode], name: str) -> list[float]:
    runtime = load_runtime(read_settings(WorkerSettings))
    init = next(i for i in runtime.by_digest.values() if i.name == name)
    times = []
    for episode in tqdm(episodes, desc="bare", disable=None):
        size = len(episode.support), len(episode.labels)
        recipe = JobRecipe(
            initialization=name,
            initialization_digest=init.digest,
            support=tuple(sorted(support_of(episode), key=lambda pair: pair[::-1])),
            steps=None if init.inner.asks(*size) else init.inner.steps_for(*size),
            seed=0,
            precision=str(runtime.base.dtype).removeprefix("torch."),
        )
        began = time.perf_counter()
        runtime.adapt(recipe)
        times.append(1e3 * (time.perf_counter() - began))
    return times


def _served(episodes: list[Episode], name: str) -> tuple[list[float], list[float], list[float]]:
    ready, inner, queue = [], [], []
    with tempfile.TemporaryDirectory() as data, served(Path(data)) as url, Client(url) as quickstudy:
        for episode in tqdm(episodes, desc="served", disable=None):
            began = time.perf_counter()
            adapter = quickstudy.adapt(support_of(episode), initialization=name)
            ready.append(1e3 * (time.perf_counter() - began))
            timings = quickstudy.adapter(adapter).timings
            inner.append(timings["tokenize"] + timings["inner_loop"])
            queue.append(timings["queue"])
            time.sleep(0.2)
    return ready, inner, queue


if __name__ == "__main__":
    main()
