"""`make bench-versions COMMIT=…`: is this commit as fast as another one? Both run here, at the same time, and are measured in turn.

- adapt: from POST to ready, 5-way 1-, 5- and 10-shot of the shipped task set at rest, and 8 support sets sent at once;
- predict: batches of a bank of adapters in a process of its own, without HTTP; and the bare base model's forward pass, which says
  how even the machine was;
- load: predictions by 1, 8 and 64 clients.

A pair is the same work for one commit and then for the other, seconds apart, each going first in every other pair. What counts is
the median of the pairs' own ratios, over 1 where this commit is faster, with an interval of at least 95 % by order statistics. The
first pair of each case warms up. About ten minutes with the default settings.
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
from benchmarks.load import connection
from benchmarks.record import Row, write
from tests.upgrade.checkout import ROOT, CommitUnavailable, checkout, conversing
from tests.upgrade.services import served

HERE = "this commit"
AT_ONCE = 8
BANK = ((64, 1), (64, 16), (64, 64))  # rows, adapters
LOAD = ((1, 1), (8, 16), (64, 16))  # clients, inputs a request
LOADED_ADAPTERS = 64
Tasks = list[tuple[Pairs, Pairs]]
Asked = list[tuple[int, list[str]]]
"""Requests for predictions: the adapter's number and the inputs."""


@dataclass(frozen=True)
class Compared:
    """One case: the milliseconds of each pair, of the other commit and of this one."""

    case: str
    other: list[float]
    own: list[float]

    @property
    def ratios(self) -> list[float]:
        """How many times as fast this commit is, by pair."""
        return [theirs / ours for theirs, ours in zip(self.other, self.own, strict=True)]


@dataclass(frozen=True)
class Version:
    """One commit's service and bank."""

    url: str
    ask_bank: Callable[[str], str]
    http: httpx.Client


@click.command()
@click.option("--commit", required=True, help="What this one is compared with.")
@click.option("--api", help="Module of tests/upgrade that calls its bank: api_API.py; of that commit's name, or `current`.")
@click.option("--rounds", default=15, show_default=True, help="Pairs of each case.")
@click.option(
    "--load-rows", default=600, show_default=True, help="Inputs of each measurement under load, about; fewer of one client."
)
@click.option("--load-rounds", default=5, show_default=True, help="Pairs of each case under load, and of those sent at once.")
@click.option("--threads", default=0, help="0: one a core.")
def main(commit: str, api: str | None, rounds: int, load_rows: int, load_rounds: int, threads: int) -> None:
    threads = threads or torch.get_num_threads()
    if api is None:
        api = commit if importlib.util.find_spec(f"tests.upgrade.api_{commit}") else "current"
    began = time.monotonic()
    try:
        with checkout(commit) as code, _running(code, api, threads) as other, _running(ROOT, "current", threads) as own:
            found = [*_adapt(other, own, rounds, load_rounds), *_predict(other, own, rounds)]
            found += _load(other, own, load_rows, load_rounds)
    except CommitUnavailable as error:
        sys.exit(f"error: --commit: {error}")
    rows = [row for compared in found for row in _rows(commit, compared)]
    whole = subprocess.run(["git", "rev-parse", commit], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    path = write("versions", rows, against=whole, rounds=rounds, load_rounds=load_rounds, load_rows=load_rows, threads=threads)
    print(f"\nwrote {path} after {time.monotonic() - began:.0f} s")


@contextmanager
def _running(code: Path, api: str, threads: int) -> Iterator[Version]:
    """Run a commit's service and its bank."""
    settings = {"THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    with ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quickstudy-versions-")))
        ask = stack.enter_context(conversing("bank_speed.py", api, str(threads), code=code, settings=settings))
        url = stack.enter_context(served(code, data, settings))
        yield Version(url, ask, stack.enter_context(httpx.Client(base_url=url, timeout=300)))


def paired(case: str, measure: Callable[[Version, int], float], other: Version, own: Version, pairs: int) -> Compared:
    """Measure `pairs` pairs after one that warms up. `measure` takes a pair's number, and the same work for both has the same."""
    found = Compared(case, [], [])
    for pair in tqdm(range(pairs + 1), desc=case, leave=False, disable=None):
        turns = [(other, found.other), (own, found.own)]
        for version, kept in turns if pair % 2 else reversed(turns):
            took = measure(version, pair)
            if pair:
                kept.append(took)
    low, high = median_interval(found.ratios)
    middle = statistics.median(found.own)
    print(
        f"{case:<52} {middle:>9.1f} ms   {statistics.median(found.ratios):.3f} times as fast ({low:.3f} to {high:.3f})", flush=True
    )
    return found


def median_interval(values: Sequence[float], coverage: float = 0.95) -> tuple[float, float]:
    """Return the interval between two order statistics that holds the median with this probability, whatever the distribution.

    The whole range where even that has less, as with five values or fewer.
    """
    ranked, n = sorted(values), len(values)
    below = 0.0
    cut = 0  # so many values at each end are outside
    while cut < (n - 1) // 2 and 1 - 2 * (below + comb(n, cut) / 2**n) >= coverage:
        below += comb(n, cut) / 2**n
        cut += 1
    place = max(0, cut - 1)
    return ranked[place], ranked[n - 1 - place]


def _adapt(other: Version, own: Version, rounds: int, load_rounds: int) -> Iterator[Compared]:
    # Support sets enough for a fresh one in every pair: nothing is answered from an adapter that is there.
    drawn = cases(None, rounds + 1 + AT_ONCE * (load_rounds + 1))
    for case in drawn:
        yield paired(f"adapt, {case.name}, at rest", partial(_at_rest, case.tasks), other, own, rounds)
    case = next(case for case in drawn if "5-shot" in case.name)
    shown = f"adapt, {case.name}, {AT_ONCE} at once, each"
    yield paired(shown, partial(_at_once, case.tasks[rounds + 1 :]), other, own, load_rounds)


def _at_rest(tasks: Tasks, version: Version, pair: int) -> float:
    return _posted(version, tasks[pair][0])[0]


def _at_once(tasks: Tasks, version: Version, pair: int) -> float:
    supports = [support for support, _ in tasks[AT_ONCE * pair : AT_ONCE * (pair + 1)]]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        began = time.perf_counter()
        list(pool.map(partial(_posted, version), supports))
        return 1e3 * (time.perf_counter() - began) / AT_ONCE


def _posted(version: Version, support: Pairs) -> tuple[float, str]:
    """Return the milliseconds from POST to ready, and the adapter's id."""
    body = {"support": [{"input": text, "label": label} for text, label in support]}
    began = time.perf_counter()
    answer = version.http.post("/adapt", json=body, headers={"Prefer": "wait=60"}).raise_for_status().json()
    took = 1e3 * (time.perf_counter() - began)
    assert answer["status"] == "ready", answer
    return took, str(answer["adapter_id"])


def _predict(other: Version, own: Version, rounds: int) -> Iterator[Compared]:
    for rows, adapters in BANK:
        yield paired(f"predict, {rows} rows, {adapters} adapters", partial(_batch, rows, adapters, 0), other, own, rounds)
    yield paired("predict, 64 rows, bare base forward", partial(_batch, 64, 1, 1), other, own, rounds)


def _batch(rows: int, adapters: int, which: int, version: Version, _pair: int) -> float:
    return float(version.ask_bank(f"{rows} {adapters}").split()[which])


def _load(other: Version, own: Version, rows: int, rounds: int) -> Iterator[Compared]:
    # Of one example a class, which takes no inner step.
    tasks = cases(None, LOADED_ADAPTERS)[0].tasks[:LOADED_ADAPTERS]
    adapters = {version.url: [_posted(version, support)[1] for support, _ in tasks] for version in (other, own)}
    texts = [text for support, _ in tasks for text, _ in support]
    for clients, inputs in LOAD:
        draw = random.Random(clients)
        asked = [
            (draw.randrange(LOADED_ADAPTERS), draw.choices(texts, k=inputs)) for _ in range(max(clients, rows // max(inputs, 4)))
        ]
        shown = f"load, {clients} clients, {inputs} inputs a request, a row"
        yield paired(shown, partial(_under_load, adapters, clients, asked), other, own, rounds)


def _under_load(adapters: dict[str, list[str]], clients: int, asked: Asked, version: Version, _pair: int) -> float:
    """Return the milliseconds until all is answered, by row; each client sends its next request when it has an answer."""
    its = adapters[version.url]
    bodies = iter([json.dumps({"adapter_id": its[number], "inputs": inputs}).encode() for number, inputs in asked])

    async def client() -> None:
        async with connection(version.url) as post:
            for body in bodies:
                status, _headers = await post("/predict", body)
                assert status == 200, status

    async def everyone() -> float:
        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return time.perf_counter() - began

    return 1e3 * asyncio.run(everyone()) / sum(len(inputs) for _, inputs in asked)


def _rows(commit: str, found: Compared) -> list[Row]:
    low, high = median_interval(found.ratios)
    return [
        Row(found.case, commit, "median", statistics.median(found.other), "ms"),
        Row(found.case, HERE, "median", statistics.median(found.own), "ms"),
        Row(found.case, HERE, f"times as fast as {commit}", statistics.median(found.ratios), ""),
        Row(found.case, HERE, f"times as fast as {commit}, 95 % interval, low", low, ""),
        Row(found.case, HERE, f"times as fast as {commit}, 95 % interval, high", high, ""),
    ]


if __name__ == "__main__":
    main()
