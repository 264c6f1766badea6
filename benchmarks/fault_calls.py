"""Calls to a service while one of its parts hangs, is frozen or stops, and what came of them."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

ANSWER_SECONDS = 3.0
"""Longest time of an answer while Redis is frozen: the promised two seconds, and room for a machine that is busy."""
_AT_ONCE = 6
NO_ANSWER = 0


@dataclass
class Observed:
    """Observations during faults.

    `frozen_seconds`: the time of each answer while a Redis server was frozen. `hung_exits`: the exit status of each worker that was
    made to hang, None if it did not end in time. `at_stop`: the calls that were in flight when the service got SIGTERM, by status;
    `after_stop`: those sent after it.
    """

    frozen_seconds: list[float] = field(default_factory=list)
    hung_exits: list[int | None] = field(default_factory=list)
    at_stop: Counter[int] = field(default_factory=Counter)
    after_stop: Counter[int] = field(default_factory=Counter)


def call_while_frozen(url: str, observed: Observed) -> None:
    """Ask for everything that needs Redis, and note how long each answer takes."""
    for method, path, body in (
        ("GET", "/readyz", None),
        ("GET", "/metrics", None),
        ("GET", "/adapters", None),
        ("POST", "/predict", {"adapter_id": f"a{'0' * 40}", "inputs": ["a text"]}),
    ):
        began = time.monotonic()
        with contextlib.suppress(httpx.HTTPError):
            httpx.request(method, f"{url}{path}", json=body, timeout=30)
        observed.frozen_seconds.append(time.monotonic() - began)


def call_at_stop(url: str, stop: Callable[[], None], observed: Observed) -> None:
    """Send predictions, call `stop` while they are in flight, send others, and note the status of each."""
    ready = httpx.get(f"{url}/adapters", params={"status": "ready", "limit": 1}, timeout=30).json().get("adapters", [])
    if not ready:
        stop()
        return
    body = {"adapter_id": ready[0]["adapter_id"], "inputs": [f"text number {number}" for number in range(200)]}
    with ThreadPoolExecutor(2 * _AT_ONCE) as pool:
        in_flight = [pool.submit(_status, url, body) for _ in range(_AT_ONCE)]
        time.sleep(0.2)
        stopping = pool.submit(stop)
        time.sleep(0.1)
        late = [pool.submit(_status, url, body) for _ in range(_AT_ONCE - 1)]
        observed.at_stop.update(call.result() for call in in_flight)
        observed.after_stop.update(call.result() for call in late)
        stopping.result()


def _status(url: str, body: dict[str, Any]) -> int:
    try:
        return httpx.post(f"{url}/predict", json=body, timeout=60).status_code
    except httpx.HTTPError:
        return NO_ANSWER
