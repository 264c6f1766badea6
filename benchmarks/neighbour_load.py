"""The callers of `make bench-neighbours`, each kind in a process of its own.

`python -m benchmarks.neighbour_load KIND` reads one JSON object from standard input (the fields of `Order`), calls a service for
that time and prints one JSON object. A call that is refused with 429 or 503 is sent again after the time in its `Retry-After`
header, as a well-behaved client does.
"""

import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from metatrain.tasks.table import STARTER, read_table

PREDICT_EVERY, ADAPT_EVERY = 0.1, 5.0
GRACE_SECONDS = 10.0
"""How long the quiet tenant waits for its last answers."""
_TIMEOUT_SECONDS = 120.0
_REFUSALS = (429, 503)


@dataclass(frozen=True)
class Order:
    """The task of one load process: `callers` callers with the API key `key`, for `seconds`.

    `adapter`: the adapter to predict with. `inputs` and `chars`: the number of inputs in a request and the length of each; 0 takes
    the texts of the shipped task set as they are. `body_bytes`: the size of each body of dry runs and held bodies. `seed`: seeds
    the examples; no two processes have the same, so that no two send the same job.
    """

    url: str
    key: str
    seconds: float
    adapter: str = ""
    callers: int = 1
    inputs: int = 256
    chars: int = 0
    body_bytes: int = 0
    seed: int = 0


@dataclass
class Calls:
    """The calls of one kind that a load process made.

    `seconds`: from the first try to the final answer of each call, with all waiting between tries. A call without a final answer
    counts with the time until the process gave up, and is also counted in `unanswered`. `statuses`: answers by status; 0: none.
    """

    seconds: list[float] = field(default_factory=list)
    unanswered: int = 0
    statuses: Counter[int] = field(default_factory=Counter)

    def report(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "unanswered": self.unanswered, "statuses": self.statuses}


def support_set(seed: int, *, shots: int = 5) -> list[dict[str, str]]:
    """Draw a 5-way support set from the shipped task set."""
    texts, draw = read_table(STARTER).texts, random.Random(seed)
    labels = draw.sample(list(texts), 5)
    return [{"input": text, "label": label} for label in labels for text in draw.sample(texts[label], shots)]


def texts_of(count: int, chars: int, seed: int) -> list[str]:
    """Draw `count` texts, of `chars` characters each unless that is 0."""
    texts = [text for texts in read_table(STARTER).texts.values() for text in texts]
    draw = random.Random(seed)
    if not chars:
        return draw.choices(texts, k=count)
    return [" ".join(draw.choices(texts, k=1 + chars // 10))[:chars] for _ in range(count)]


async def quiet(order: Order) -> dict[str, Any]:
    """Predict every 100 ms and adapt every 5 s, whether or not earlier calls have been answered."""
    predicts, adapts = Calls(), Calls()
    texts = texts_of(100, 0, order.seed)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(
        base_url=order.url, headers={"Authorization": f"Bearer {order.key}"}, timeout=_TIMEOUT_SECONDS, limits=limits
    ) as http:

        async def repeat(calls: Calls, every: float, one: Callable[[int], Awaitable[httpx.Response]]) -> None:
            began, tasks = time.perf_counter(), set[asyncio.Task[None]]()
            for number in range(round(order.seconds / every)):
                await asyncio.sleep(began + number * every - time.perf_counter())
                tasks.add(asyncio.create_task(_until_answered(calls, lambda number=number: one(number))))  # type: ignore[misc]
            await asyncio.sleep(began + order.seconds - time.perf_counter())
            await _finish(tasks)

        def predict(number: int) -> Awaitable[httpx.Response]:
            return http.post("/predict", json={"adapter_id": order.adapter, "inputs": [texts[number % len(texts)]]})

        def adapt(number: int) -> Awaitable[httpx.Response]:
            body = {"support": support_set(order.seed + number), "options": {"seed": order.seed + number}}
            return http.post("/adapt", json=body, headers={"Prefer": "wait=60"})

        await asyncio.gather(repeat(predicts, PREDICT_EVERY, predict), repeat(adapts, ADAPT_EVERY, adapt))
    return {"predict": predicts.report(), "adapt": adapts.report()}


async def _finish(tasks: set[asyncio.Task[None]]) -> None:
    """Wait for the last answers, for `GRACE_SECONDS` at most, then give up the calls that have none."""
    _, pending = await asyncio.wait(tasks, timeout=GRACE_SECONDS)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)


async def _until_answered(calls: Calls, send: Callable[[], Awaitable[httpx.Response]]) -> None:
    """Send a request until it is answered with 200, and note its time.

    A 202 is a job that is not ready yet: it is sent again.
    """
    began = time.perf_counter()
    try:
        while True:
            try:
                answer = await send()
            except httpx.TransportError:
                calls.statuses[0] += 1
                await asyncio.sleep(0.5)
                continue
            calls.statuses[answer.status_code] += 1
            if answer.status_code == 200:
                break
            await asyncio.sleep(_retry_after(answer.headers.get("Retry-After")) if answer.status_code in _REFUSALS else 0.1)
    except asyncio.CancelledError:
        calls.unanswered += 1
    finally:
        calls.seconds.append(time.perf_counter() - began)


async def predict(order: Order) -> dict[str, Any]:
    """Let each caller send its next request after an answer, and count the answered inputs."""
    bodies = [
        json.dumps({"adapter_id": order.adapter, "inputs": texts_of(order.inputs, order.chars, order.seed + number)}).encode()
        for number in range(4)
    ]
    return await _closed_loop(order, "/predict", bodies, order.inputs, "rows")


async def dry_runs(order: Order) -> dict[str, Any]:
    """Validate large support sets over and over: each of `body_bytes`, in texts of `chars` characters."""
    examples = max(5, order.body_bytes // (order.chars + 40))
    bodies = []
    for number in range(2):
        texts = texts_of(examples, order.chars, order.seed + number)
        bodies.append(json.dumps({"support": [{"input": text, "label": f"l{i % 5}"} for i, text in enumerate(texts)]}).encode())
    return await _closed_loop(order, "/adapt?dry_run=true", bodies, 1, "dry runs")


async def _closed_loop(order: Order, path: str, bodies: list[bytes], worth: int, unit: str) -> dict[str, Any]:
    """Run `order.callers` callers, and return what was answered until the last answer.

    Requests that are sent before the end are waited for, so that long calls count, however few of them fit into the time.
    """
    began = last = time.perf_counter()
    statuses, done = Counter[int](), 0

    async def caller(number: int) -> None:
        nonlocal done, last
        while (left := began + order.seconds - time.perf_counter()) > 0:
            status, headers = 0, dict[str, str]()
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                async with asyncio.timeout(_TIMEOUT_SECONDS):
                    status, headers = await _post(order, path, bodies[number % len(bodies)])
            statuses[status] += 1
            if status == 200:
                done, last = done + worth, time.perf_counter()
            else:
                await asyncio.sleep(min(_retry_after(headers.get("retry-after")), left))

    await asyncio.gather(*(caller(number) for number in range(order.callers)))
    spent = max(last - began, 1e-9)
    return {"done": done, "per_second": done / spent if done else 0.0, "unit": unit, "statuses": statuses}


async def jobs(order: Order) -> dict[str, Any]:
    """Queue `callers` jobs at once, and return how many of them a second ended within `seconds`."""
    statuses = Counter[int]()
    limit, headers = asyncio.Semaphore(8), {"Authorization": f"Bearer {order.key}"}
    async with httpx.AsyncClient(base_url=order.url, headers=headers, timeout=_TIMEOUT_SECONDS) as http:
        earlier, _ = await _ended(http)
        began = time.perf_counter()

        async def job(number: int) -> None:
            body = {"support": support_set(order.seed + number), "options": {"seed": order.seed + number}}
            while (left := began + order.seconds - time.perf_counter()) > 0:
                try:
                    async with limit:
                        answer = await http.post("/adapt", json=body)
                except httpx.TransportError:
                    statuses[0] += 1
                    await asyncio.sleep(min(0.5, left))
                    continue
                statuses[answer.status_code] += 1
                if answer.status_code not in _REFUSALS:
                    return
                await asyncio.sleep(min(_retry_after(answer.headers.get("Retry-After")), left))

        await asyncio.gather(*(job(number) for number in range(order.callers)))
        await asyncio.sleep(max(0.0, began + order.seconds - time.perf_counter()))
        ended, passes = await _ended(http)
    done, spent = ended - earlier, time.perf_counter() - began
    return {"done": done, "per_second": done / spent, "unit": "jobs", "statuses": statuses, "passes_ms": passes}


async def _ended(http: httpx.AsyncClient) -> tuple[int, list[float]]:
    """Return the number of ready adapters of the tenant, and the times of some inner loops in ms."""
    done, cursor, identities = 0, "", list[str]()
    while cursor is not None:
        page = (
            await http.get("/adapters", params={"limit": 200, "status": "ready", **({"cursor": cursor} if cursor else {})})
        ).json()
        identities += [row["adapter_id"] for row in page["adapters"]]
        cursor = page["next_cursor"]
    done = len(identities)
    views = [(await http.get(f"/adapters/{identity}")).json() for identity in identities[:20]]
    return done, [float(view["timings"]["inner_loop"]) for view in views if "inner_loop" in (view.get("timings") or {})]


async def held_bodies(order: Order) -> dict[str, Any]:
    """Keep `callers` bodies of `body_bytes` open by sending the end of each slowly."""
    statuses, sent = Counter[int](), 0
    began = time.perf_counter()
    start = json.dumps({"adapter_id": order.adapter, "inputs": [""]})[:-3].encode()

    async def caller() -> None:
        nonlocal sent
        while (left := began + order.seconds - time.perf_counter()) > 0:
            status, headers = 0, dict[str, str]()
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                async with asyncio.timeout(left):
                    reader, writer = await _connect(order, "/predict", order.body_bytes)
                    try:
                        answer = asyncio.ensure_future(_answer(reader))
                        content = start + b"a" * (order.body_bytes - len(start) - 100_000)
                        for position in range(0, len(content), 65_536):
                            if answer.done():
                                break
                            writer.write(content[position : position + 65_536])
                            await writer.drain()
                            sent += len(content[position : position + 65_536])
                        while not answer.done():
                            writer.write(b"a" * 1000)
                            await writer.drain()
                            await asyncio.wait((answer,), timeout=1)
                        status, headers = answer.result()
                    finally:
                        answer.cancel()
                        writer.close()
            left = began + order.seconds - time.perf_counter()
            if left > 0:
                statuses[status] += 1
                await asyncio.sleep(min(_retry_after(headers.get("retry-after")), left))
            else:
                statuses[-1] += 1  # still held when the time was over

    await asyncio.gather(*(caller() for _ in range(order.callers)))
    return {"done": 0, "per_second": 0.0, "unit": "", "statuses": statuses, "bytes": sent}


async def _post(order: Order, path: str, body: bytes) -> tuple[int, dict[str, str]]:
    """Send a request as raw bytes on a connection of its own, and return status and headers."""
    reader, writer = await _connect(order, path, len(body))
    try:
        answer = asyncio.ensure_future(_answer(reader))
        with contextlib.suppress(ConnectionError):  # the service may answer and close before it has read all
            for position in range(0, len(body), 65_536):
                writer.write(body[position : position + 65_536])
                await writer.drain()
                if answer.done():
                    break
        return await answer
    finally:
        answer.cancel()
        writer.close()


async def _connect(order: Order, path: str, length: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    target = httpx.URL(order.url)
    reader, writer = await asyncio.open_connection(target.host, target.port)
    lines = [f"POST {path} HTTP/1.1", f"Host: {target.host}:{target.port}", f"Authorization: Bearer {order.key}"]
    lines += ["Content-Type: application/json", f"Content-Length: {length}", "Connection: close", "", ""]
    writer.write("\r\n".join(lines).encode())
    return reader, writer


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if "content-length" in headers:
        await reader.readexactly(int(headers["content-length"]))
    return int(first.split()[1]), headers


def _retry_after(value: str | None) -> float:
    """Return the seconds of a `Retry-After` header; half a second without one."""
    return float(value) if value is not None and value.isdigit() else 0.5


KINDS: dict[str, Callable[[Order], Awaitable[dict[str, Any]]]] = {
    "quiet": quiet,
    "predict": predict,
    "dry runs": dry_runs,
    "jobs": jobs,
    "held bodies": held_bodies,
}


async def _run(kind: str, order: Order) -> dict[str, Any]:
    return await KINDS[kind](order)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_run(sys.argv[1], Order(**json.loads(sys.stdin.read()))))))
