"""`make bench-versions COMMIT=…`: compare the speed of this commit and another one on this machine.

Both commits run at the same time and are measured in turn:

- adapt: from POST to ready, 5-way 1-, 5- and 10-shot of the shipped task set at rest, and 8 support sets sent at once;
- predict: batches in a bank of adapters in a separate process, without HTTP; also the bare base model's forward pass, which shows
  how steady the machine was;
- load: predictions by 1, 8 and 64 clients.

A pair is one measurement of each commit with the same work, seconds apart. The commits take turns in going first. The first pair of
each case only warms up. The result is the median over pairs of the ratio of speeds, which is above 1 if this commit is faster, with
an interval of at least 95 % by order statistics. The benchmark takes about ten minutes with the default settings.
"""

import asyncio
import importlib.util
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import comb
from pathlib import Path

import click
import httpx
import torch
from tqdm import tqdm

from benchmarks.adapt import Pairs, cases
from benchmarks.limits import NO_LIMITS
from benchmarks.load import connection
from benchmarks.record import Row, write
from tests.upgrade.checkout import ROOT, CommitUnavailable, checkout, interactive_script
from tests.upgrade.services import served

HERE = "this commit"
AT_ONCE = 8
BANK = ((64, 1), (64, 16), (64, 64))  # rows, adapters
LOAD = ((1, 1), (8, 16), (64, 16))  # clients, inputs a request
LOADED_ADAPTERS = 64
Tasks = list[tuple[Pairs, Pairs]]
Requests = list[tuple[int, list[str]]]
"""Predict requests: the adapter's number and the inputs."""


@dataclass(frozen=True)
class Comparison:
    """The measurements of one case: the milliseconds of the other commit and of this one in each pair."""

    case: str
    other: list[float]
    own: list[float]

    @property
    def ratios(self) -> list[float]:
        """The speed of this commit relative to the other one, by pair."""
        return [other / own for other, own in zip(self.other, self.own, strict=True)]


@dataclass(frozen=True)
class Version:
    """The running service and the running bank of one commit.

    `ask_bank`: sends one line to the process of the bank and returns its answer.
    """

    url: str
    ask_bank: Callable[[str], str]
    http: httpx.Client


@click.command()
@click.option("--commit", required=True, help="Commit to compare this one with.")
@click.option(
    "--api", help="Suffix of the module tests/upgrade/api_API.py that calls the commit's bank. Default: the commit, else `current`."
)
@click.option("--rounds", default=15, show_default=True, help="Pairs of each case.")
@click.option(
    "--load-rows",
    default=600,
    show_default=True,
    help="Approximate number of inputs of each measurement under load; fewer with one client.",
)
@click.option("--load-rounds", default=5, show_default=True, help="Pairs of each case under load or sent at once.")
@click.option("--threads", default=0, help="Threads of each service; 0 means one for each core.")
def main(commit: str, api: str | None, rounds: int, load_rows: int, load_rounds: int, threads: int) -> None:
    threads = threads or torch.get_num_threads()
    if api is None:
        api = commit if importlib.util.find_spec(f"tests.upgrade.api_{commit}") else "current"
    began = time.monotonic()
    try:
        with checkout(commit) as code, _running(code, api, threads) as other, _running(ROOT, "current", threads) as own:
            comparisons = [*_adapt(other, own, rounds, load_rounds), *_predict(other, own, rounds)]
            comparisons += _load(other, own, load_rows, load_rounds)
    except CommitUnavailable as error:
        sys.exit(f"error: --commit: {error}")
    rows = [row for comparison in comparisons for row in _rows(commit, comparison)]
    full_hash = subprocess.run(["git", "rev-parse", commit], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    path = write("versions", rows, against=full_hash, rounds=rounds, load_rounds=load_rounds, load_rows=load_rows, threads=threads)
    print(f"\nwrote {path} after {time.monotonic() - began:.0f} s")


@contextmanager
def _running(code: Path, api: str, threads: int) -> Iterator[Version]:
    """Run the service and the bank of the commit in the folder `code`, and yield both.

    `api`: the suffix of the module `tests/upgrade/api_….py` that calls the commit's bank.
    """
    settings = {**NO_LIMITS, "THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    with ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quickstudy-versions-")))
        ask = stack.enter_context(interactive_script("bank_speed.py", api, str(threads), code=code, settings=settings))
        url = stack.enter_context(served(code, data, settings))
        yield Version(url, ask, stack.enter_context(httpx.Client(base_url=url, timeout=300)))


def compare(case: str, measure: Callable[[Version, int], float], other: Version, own: Version, pairs: int) -> Comparison:
    """Measure both versions in `pairs` pairs, after one pair that warms up, and print the result.

    `measure(version, pair)` returns milliseconds. `pair` is the number of the pair, which must determine the work, so that both
    versions do the same.
    """
    comparison = Comparison(case, [], [])
    for pair in tqdm(range(pairs + 1), desc=case, leave=False, disable=None):
        turns = [(other, comparison.other), (own, comparison.own)]
        for version, times in turns if pair % 2 else reversed(turns):
            took = measure(version, pair)
            if pair:
                times.append(took)
    low, high = median_interval(comparison.ratios)
    median, ratio = statistics.median(comparison.own), statistics.median(comparison.ratios)
    print(f"{case:<52} {median:>9.1f} ms   {ratio:.3f} times as fast ({low:.3f} to {high:.3f})", flush=True)
    return comparison


def median_interval(values: Sequence[float], coverage: float = 0.95) -> tuple[float, float]:
    """Return an interval between two order statistics that contains the median.

    It contains the median with a probability of at least `coverage`, whatever the distribution of the values. If there are too few
    values for that (for 0.95: five or fewer), the range of all values is returned.
    """
    ranked, n = sorted(values), len(values)
    below = 0.0
    cut = 0  # the interval goes from the `cut`-th smallest value to the `cut`-th largest; 0 means too few values
    while cut < (n - 1) // 2 and 1 - 2 * (below + comb(n, cut) / 2**n) >= coverage:
        below += comb(n, cut) / 2**n
        cut += 1
    place = max(0, cut - 1)
    return ranked[place], ranked[n - 1 - place]


def _adapt(other: Version, own: Version, rounds: int, load_rounds: int) -> Iterator[Comparison]:
    # Draw a new support set for every pair, so that no request finds a finished adapter.
    drawn = cases(None, rounds + 1 + AT_ONCE * (load_rounds + 1))
    for case in drawn:
        yield compare(f"adapt, {case.name}, at rest", partial(_at_rest, case.tasks), other, own, rounds)
    case = next(case for case in drawn if "5-shot" in case.name)
    title = f"adapt, {case.name}, {AT_ONCE} at once, each"
    yield compare(title, partial(_at_once, case.tasks[rounds + 1 :]), other, own, load_rounds)


def _at_rest(tasks: Tasks, version: Version, pair: int) -> float:
    return _adapt_once(version, tasks[pair][0])[0]


def _at_once(tasks: Tasks, version: Version, pair: int) -> float:
    supports = [support for support, _ in tasks[AT_ONCE * pair : AT_ONCE * (pair + 1)]]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        began = time.perf_counter()
        list(pool.map(partial(_adapt_once, version), supports))
        return 1e3 * (time.perf_counter() - began) / AT_ONCE


def _adapt_once(version: Version, support: Pairs) -> tuple[float, str]:
    """Create an adapter. Return the milliseconds from POST to ready, and the adapter's id."""
    body = {"support": [{"input": text, "label": label} for text, label in support]}
    began = time.perf_counter()
    answer = version.http.post("/adapt", json=body, headers={"Prefer": "wait=60"}).raise_for_status().json()
    took = 1e3 * (time.perf_counter() - began)
    assert answer["status"] == "ready", answer
    return took, str(answer["adapter_id"])


def _predict(other: Version, own: Version, rounds: int) -> Iterator[Comparison]:
    for rows, adapters in BANK:
        yield compare(f"predict, {rows} rows, {adapters} adapters", partial(_batch, rows, adapters, 0), other, own, rounds)
    yield compare("predict, 64 rows, bare base forward", partial(_batch, 64, 1, 1), other, own, rounds)


def _batch(rows: int, adapters: int, column: int, version: Version, _pair: int) -> float:
    """Predict one batch, and return the milliseconds of the bank (column 0) or the bare model (column 1)."""
    return float(version.ask_bank(f"{rows} {adapters}").split()[column])


def _load(other: Version, own: Version, rows: int, rounds: int) -> Iterator[Comparison]:
    # The first case has one example a class, which takes no inner step.
    tasks = cases(None, LOADED_ADAPTERS)[0].tasks[:LOADED_ADAPTERS]
    adapters = {version.url: [_adapt_once(version, support)[1] for support, _ in tasks] for version in (other, own)}
    texts = [text for support, _ in tasks for text, _ in support]
    for clients, inputs in LOAD:
        draw = random.Random(clients)
        requests = [
            (draw.randrange(LOADED_ADAPTERS), draw.choices(texts, k=inputs)) for _ in range(max(clients, rows // max(inputs, 4)))
        ]
        title = f"load, {clients} clients, {inputs} inputs a request, a row"
        yield compare(title, partial(_under_load, adapters, clients, requests), other, own, rounds)


def _under_load(adapters: dict[str, list[str]], clients: int, requests: Requests, version: Version, _pair: int) -> float:
    """Send all requests from `clients` clients at once, and return the milliseconds per row.

    Each client sends its next request when the last one is answered.
    """
    ids = adapters[version.url]
    bodies = iter([json.dumps({"adapter_id": ids[number], "inputs": inputs}).encode() for number, inputs in requests])

    async def client() -> None:
        async with connection(version.url) as post:
            for body in bodies:
                status, _headers = await post("/predict", body)
                assert status == 200, status

    async def all_clients() -> float:
        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return time.perf_counter() - began

    return 1e3 * asyncio.run(all_clients()) / sum(len(inputs) for _, inputs in requests)


def _rows(commit: str, comparison: Comparison) -> list[Row]:
    case = comparison.case
    low, high = median_interval(comparison.ratios)
    return [
        Row(case, commit, "median", statistics.median(comparison.other), "ms"),
        Row(case, HERE, "median", statistics.median(comparison.own), "ms"),
        Row(case, HERE, f"times as fast as {commit}", statistics.median(comparison.ratios), ""),
        Row(case, HERE, f"times as fast as {commit}, 95 % interval, low", low, ""),
        Row(case, HERE, f"times as fast as {commit}, 95 % interval, high", high, ""),
    ]


if __name__ == "__main__":
    main()
