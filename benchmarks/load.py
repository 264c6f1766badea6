"""`make bench-load`: measure predictions over HTTP under load, and compare with the bare base model.

One embedded service, as `make serve` runs it, serves up to 1,024 adapters. 1 to 64 clients on loopback send requests with 1 or 16
inputs; each client sends its next request when the last one is answered. The clients choose adapters uniformly or by Zipf's law (s
= 1). The forward pass of the bare base model is measured first, in a separate process with the same number of threads, in batches
of 64 rows of the same texts. The load generator shares the machine's cores with the service. To see the cost of moving weights to
the device, set `--bank-mb` so low that the device holds only half of the adapters.
"""

import asyncio
import contextlib
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import click
import httpx
import torch
from tqdm import tqdm

from benchmarks.limits import NO_LIMITS
from benchmarks.record import Row, write
from metatrain.models.loading import load_base
from metatrain.tasks.episodes import EpisodeSampler, EpisodeShape
from metatrain.tasks.table import STARTER, read_table
from service.running.demo import served

BARE = "bare packed forward"
CASES = [  # clients, adapters, law, inputs a request
    (1, 1, "uniform", 1),
    (1, 1024, "uniform", 1),
    (8, 64, "uniform", 1),
    (64, 64, "uniform", 1),
    (1, 64, "uniform", 16),
    (8, 64, "uniform", 16),
    (64, 1, "uniform", 16),
    (64, 64, "uniform", 16),
    (64, 1024, "uniform", 16),
    (64, 1024, "zipf", 16),
]


@click.command()
@click.option("--seconds", default=12.0, show_default=True, help="Duration of each case in seconds.")
@click.option("--adapters", "adapter_count", default=1024, show_default=True)
@click.option("--bank-mb", default=256.0, show_default=True, help="Memory for adapters on the device, in MB.")
@click.option("--bare", is_flag=True, hidden=True)
def main(seconds: float, adapter_count: int, bank_mb: float, bare: bool) -> None:
    if bare:
        print(json.dumps(_bare()))
        return
    done = subprocess.run([sys.executable, "-m", "benchmarks.load", "--bare"], capture_output=True, text=True, check=True)
    bare_rate = float(json.loads(done.stdout.splitlines()[-1]))
    print(f"{BARE}: {bare_rate:.0f} rows a second")
    rows = [Row("64 rows a batch", BARE, "rows a second", bare_rate, "1/s")]
    with (
        tempfile.TemporaryDirectory() as data,
        served(Path(data), {**NO_LIMITS, "BANK_MB": str(bank_mb), "LOG_LEVEL": "WARNING"}) as url,
    ):
        adapters = asyncio.run(_adapters(url, adapter_count))
        for clients, count, law, inputs in CASES:
            if count <= adapter_count:
                rows += _case(url, clients, adapters[:count], law, inputs, seconds, bare_rate)
        predictor_metrics = {
            line.split()[0].removeprefix("quickstudy_predictor_"): float(line.split()[1])
            for line in httpx.get(f"{url}/metrics").text.splitlines()
            if line.startswith("quickstudy_predictor_")
        }
    print({name: round(value) for name, value in predictor_metrics.items()})
    name = "load" if bank_mb == 256.0 else "load-half-on-device"
    print(f"\nwrote {write(name, rows, seconds=seconds, bank_mb=bank_mb, predictor=predictor_metrics)}")


def _texts() -> list[str]:
    return [text for texts in read_table(STARTER).texts.values() for text in texts]


@torch.no_grad()
def _bare() -> float:
    """Measure the forward pass of the bare base model, and return its rows per second."""
    base, texts, spent = load_base(), _texts(), []
    ids = base.inputs.encode(texts)
    for start in range(0, 64 * 24, 64):
        batch = [ids[(start + i) % len(ids)] for i in range(64)]
        began = time.perf_counter()
        base.features(None, base.collate(batch))
        spent.append(time.perf_counter() - began)
    return 64 / statistics.median(spent[4:])


async def _adapters(url: str, count: int) -> list[str]:
    """Create `count` adapters and return their ids.

    Each adapter has five classes with one example each, which takes no inner step.
    """
    sampler = EpisodeSampler([read_table(STARTER)], seed=5)
    limit = asyncio.Semaphore(16)
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        with tqdm(total=count, desc="adapting", disable=None) as bar:

            async def adapt(number: int) -> str:
                episode = sampler.episode(number, EpisodeShape(5, 1, 1))
                support = [{"input": text, "label": episode.labels[c]} for text, c in episode.support]
                async with limit:
                    body = {"support": support, "options": {"seed": number}}
                    response = await http.post("/adapt", json=body, headers={"Prefer": "wait=60"})
                response.raise_for_status()
                assert response.json()["status"] == "ready", response.text
                bar.update()
                return str(response.json()["adapter_id"])

            return list(await asyncio.gather(*(adapt(number) for number in range(count))))


def _case(url: str, clients: int, adapters: list[str], law: str, inputs: int, seconds: float, bare_rate: float) -> list[Row]:
    case = f"{clients} clients, {len(adapters)} adapters, {law}, {inputs} inputs a request"
    weights = list(itertools.accumulate(1 / (rank + 1) if law == "zipf" else 1.0 for rank in range(len(adapters))))
    draw = random.Random(clients)
    answered, refused = asyncio.run(hammer(url, clients, lambda: draw.choices(adapters, cum_weights=weights)[0], inputs, seconds))
    rate = len(answered) * inputs / seconds
    times = sorted(1e3 * took for took in answered)
    p50, p95, p99 = (times[min(len(times) - 1, int(share * len(times)))] for share in (0.5, 0.95, 0.99))
    print(f"{case:<64} {rate:>7.0f} rows/s ({rate / bare_rate:.2f} of bare)   p50 {p50:.0f}   p95 {p95:.0f}   p99 {p99:.0f} ms")
    metrics = {"rows a second": (rate, "1/s"), "of bare forward": (rate / bare_rate, ""), "refused": (refused, "")}
    metrics |= {"p50": (p50, "ms"), "p95": (p95, "ms"), "p99": (p99, "ms")}
    return [Row(case, "quickstudy", metric, value, unit) for metric, (value, unit) in metrics.items()]


async def hammer(url: str, clients: int, choose: Callable[[], str], inputs: int, seconds: float) -> tuple[list[float], int]:
    """Send predict requests from `clients` clients at once for `seconds`, after two seconds of warm-up.

    `choose`: returns the adapter id for the next request. `inputs`: the number of inputs in a request. Returns the seconds that
    each answered request took, and the number of requests refused with 429, including those during warm-up.
    """
    texts, answered, refused = _texts(), list[float](), 0

    async def client(number: int, until: float, durations: list[float]) -> None:
        nonlocal refused
        draw = random.Random(number)
        async with connection(url) as post:
            while time.perf_counter() < until:
                body = json.dumps({"adapter_id": choose(), "inputs": draw.choices(texts, k=inputs)}).encode()
                began = time.perf_counter()
                status, headers = await post("/predict", body)
                if status == 429:
                    refused += 1
                    await asyncio.sleep(float(headers["retry-after"]))
                    continue
                assert status == 200, status
                if time.perf_counter() < until:
                    durations.append(time.perf_counter() - began)

    for phase_seconds, durations in ((2.0, list[float]()), (seconds, answered)):
        until = time.perf_counter() + phase_seconds
        await asyncio.gather(*(client(number, until, durations) for number in range(clients)))
    return answered, refused


@contextlib.asynccontextmanager
async def connection(url: str) -> AsyncIterator[Callable[[str, bytes], Awaitable[tuple[int, dict[str, str]]]]]:
    """Open one keep-alive connection, and yield `post(path, body)`, which returns the status and headers.

    `post` reads and writes raw bytes, because a full HTTP client on the same cores would cost as much as the service.
    """
    target = httpx.URL(url)
    reader, writer = await asyncio.open_connection(target.host, target.port)

    async def post(path: str, body: bytes) -> tuple[int, dict[str, str]]:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {target.host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        await reader.readexactly(int(headers["content-length"]))
        return int(first.split()[1]), headers

    try:
        yield post
    finally:
        writer.close()


if __name__ == "__main__":
    main()
