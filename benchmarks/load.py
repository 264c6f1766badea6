"""`make bench-load`: predictions under load, through HTTP, next to the bare base model's forward pass.

One service (embedded, as `make serve` runs it) with up to 1,024 adapters; 1 to 64 clients on loopback, each sending its next
request when the last one is answered, uniformly over the adapters or by Zipf's law (s = 1); 1 or 16 inputs a request. Bare forward
is measured first, in a process of its own with the same threads: batches of 64 rows of the same texts. The generator shares the
machine's cores with the service. With `--bank-mb` the device holds half of the adapters: what the step down costs.
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

from benchmarks.record import Row, write
from metatrain.models.loading import load_base
from metatrain.tasks.episodes import EpisodeSampler, EpisodeShape
from metatrain.tasks.jsonl import STARTER, read_jsonl
from service.running.demo import served

BARE = "bare base forward"
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
@click.option("--seconds", default=12.0, show_default=True, help="Of each case.")
@click.option("--adapters", "most", default=1024, show_default=True)
@click.option("--bank-mb", default=256.0, show_default=True)
@click.option("--bare", is_flag=True, hidden=True)
def main(seconds: float, most: int, bank_mb: float, bare: bool) -> None:
    if bare:
        print(json.dumps(_bare()))
        return
    own = subprocess.run([sys.executable, "-m", "benchmarks.load", "--bare"], capture_output=True, text=True, check=True)
    floor = float(json.loads(own.stdout.splitlines()[-1]))
    print(f"{BARE}: {floor:.0f} rows a second")
    rows = [Row("64 rows a batch", BARE, "rows a second", floor, "1/s")]
    with tempfile.TemporaryDirectory() as data, served(Path(data), {"BANK_MB": str(bank_mb), "LOG_LEVEL": "WARNING"}) as url:
        adapters = asyncio.run(_adapters(url, most))
        for clients, count, law, inputs in CASES:
            if count <= most:
                rows += _case(url, clients, adapters[:count], law, inputs, seconds, floor)
        held = {
            line.split()[0].removeprefix("quickstudy_predictor_"): float(line.split()[1])
            for line in httpx.get(f"{url}/metrics").text.splitlines()
            if line.startswith("quickstudy_predictor_")
        }
    print({name: round(value) for name, value in held.items()})
    name = "load" if bank_mb == 256.0 else "load-half-on-device"
    print(f"\nwrote {write(name, rows, seconds=seconds, bank_mb=bank_mb, predictor=held)}")


def _texts() -> list[str]:
    return [text for own in read_jsonl(STARTER).texts.values() for text in own]


@torch.no_grad()
def _bare() -> float:
    """Rows a second."""
    base, texts, spent = load_base(), _texts(), []
    ids = base.inputs.encode(texts)
    for start in range(0, 64 * 24, 64):
        batch = [ids[(start + i) % len(ids)] for i in range(64)]
        began = time.perf_counter()
        base.features(None, base.inputs.collate(batch))
        spent.append(time.perf_counter() - began)
    return 64 / statistics.median(spent[4:])


async def _adapters(url: str, count: int) -> list[str]:
    """Each from five examples, one a class, which takes no inner step."""
    sampler = EpisodeSampler([read_jsonl(STARTER)], seed=5)
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


def _case(url: str, clients: int, adapters: list[str], law: str, inputs: int, seconds: float, floor: float) -> list[Row]:
    case = f"{clients} clients, {len(adapters)} adapters, {law}, {inputs} inputs a request"
    weights = list(itertools.accumulate(1 / (rank + 1) if law == "zipf" else 1.0 for rank in range(len(adapters))))
    draw = random.Random(clients)
    answered, refused = asyncio.run(hammer(url, clients, lambda: draw.choices(adapters, cum_weights=weights)[0], inputs, seconds))
    rate = len(answered) * inputs / seconds
    times = sorted(1e3 * took for took in answered)
    p50, p95, p99 = (times[min(len(times) - 1, int(share * len(times)))] for share in (0.5, 0.95, 0.99))
    print(f"{case:<64} {rate:>7.0f} rows/s ({rate / floor:.2f} of bare)   p50 {p50:.0f}   p95 {p95:.0f}   p99 {p99:.0f} ms")
    found = {"rows a second": (rate, "1/s"), "of bare forward": (rate / floor, ""), "refused": (refused, "")}
    found |= {"p50": (p50, "ms"), "p95": (p95, "ms"), "p99": (p99, "ms")}
    return [Row(case, "quickstudy", metric, value, unit) for metric, (value, unit) in found.items()]


async def hammer(url: str, clients: int, choose: Callable[[], str], inputs: int, seconds: float) -> tuple[list[float], int]:
    """Seconds of each request that was answered, and how many were refused; `choose` names the next request's adapter."""
    texts, answered, refused = _texts(), list[float](), 0

    async def client(number: int, until: float, kept: list[float]) -> None:
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
                    kept.append(time.perf_counter() - began)

    for warm, kept in ((2.0, list[float]()), (seconds, answered)):
        until = time.perf_counter() + warm
        await asyncio.gather(*(client(number, until, kept) for number in range(clients)))
    return answered, refused


@contextlib.asynccontextmanager
async def connection(url: str) -> AsyncIterator[Callable[[str, bytes], Awaitable[tuple[int, dict[str, str]]]]]:
    """One kept-alive connection, in little more than the bytes: a full client costs as much as the service, on the same cores."""
    where = httpx.URL(url)
    reader, writer = await asyncio.open_connection(where.host, where.port)

    async def post(path: str, body: bytes) -> tuple[int, dict[str, str]]:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {where.host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
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
