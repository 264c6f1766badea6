"""Traffic on several services at once that checks every answer.

`Failover` sends each request to one of the services in turn, and tries the next one if it is refused with 503 or 429, or not
answered. `Traffic` knows what every adapter has to answer. It never raises for a wrong answer; it collects one line for each in
`violations`, so that one run shows them all.
"""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import redis

from tests.tiny import WORDS

INPUTS = ("order pizza now please", "close my account", "play a song late", "weather today", "call a taxi to the train")
TOLERANCE = 2e-3
"""Largest difference of a probability after an adapter was adapted again, perhaps in a pass with others: rounding."""
_GIVE_UP_SECONDS = 60.0
_LABELS = ("order", "close", "play")
Predictions = list[dict[str, Any]]


class GaveUp(Exception):
    """No service gave a final answer in time."""


class Failover:
    """Sends requests to the services whose URLs are in `urls`, in turn. Thread-safe.

    `is_refusal`: returns True for further answers after which the next service is tried. `refusals` counts the answers that led to
    another try, by status; 0 means that there was no answer.
    """

    def __init__(self, is_refusal: Callable[[httpx.Response], bool] = lambda answer: False) -> None:
        self._is_refusal = is_refusal
        self.urls: tuple[str, ...] = ()
        self.refusals: Counter[int] = Counter()
        self._turn = 0
        self._lock = threading.Lock()
        # A connection for each request, so that no try can meet a connection that the service has just closed.
        self._http = httpx.Client(timeout=_GIVE_UP_SECONDS, limits=httpx.Limits(max_keepalive_connections=0))

    def close(self) -> None:
        self._http.close()

    def send(
        self, method: str, path: str, key: str, body: Any = None, headers: Mapping[str, str] | None = None, *, to: str = ""
    ) -> httpx.Response:
        """Send a request until it gets a final answer, and return that answer.

        `to`: the URL of the only service to use. Raises GaveUp.
        """
        deadline = time.monotonic() + _GIVE_UP_SECONDS
        last = "no service"
        while time.monotonic() < deadline:
            url = to or self._next()
            pause = 0.1
            try:
                content = None if body is None else json.dumps(body).encode()
                sent = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", **(headers or {})}
                answer = self._http.request(method, url + path, content=content, headers=sent)
                if answer.status_code not in (429, 503) and not self._is_refusal(answer):
                    return answer
                last, status = answer.text, answer.status_code
                pause = min(float(answer.headers.get("Retry-After", 0.1)), 1.0)
            except httpx.TransportError as error:
                last, status = f"{type(error).__name__}: {error}", 0
            with self._lock:
                self.refusals[status] += 1
            time.sleep(pause)
        raise GaveUp(f"{method} {path} was not answered within {_GIVE_UP_SECONDS:g} s; the last answer: {last[:300]}")

    def _next(self) -> str:
        with self._lock:
            urls = self.urls
            self._turn += 1
            return urls[self._turn % len(urls)]


@dataclass
class Accepted:
    """An adapter that a service accepted. `support` is the number of its support set."""

    identity: str
    tenant: str
    support: int
    is_ready: bool = False


@dataclass
class Traffic:
    """Creates and checks adapters. `keys`: the API key of each tenant.

    Adapters of one support set and one initialization must predict the same, whoever made them. So `references` has the first
    predictions by (support set, digest of the initialization), and every later answer is compared with them.
    """

    failover: Failover
    keys: Mapping[str, str]
    weights: "redis.Redis"
    accepted: dict[tuple[str, str], Accepted] = field(default_factory=dict)
    references: dict[tuple[int, str], Predictions] = field(default_factory=dict)
    digests_of_initializations: set[str] = field(default_factory=set)
    aliases: dict[tuple[str, str], str] = field(default_factory=dict)
    once: dict[tuple[str, int], str] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _next_support: int = 100_000

    # Single actions

    def adapt(self, tenant: str, support: int, *, to: str = "") -> Accepted:
        """Post support set number `support`, and note the adapter that was accepted."""
        body = {"support": support_set(support), "ttl_seconds": 86_400, "options": {"seed": support, "label_words": False}}
        answer = self.failover.send("POST", "/adapt", self.keys[tenant], body, to=to)
        if answer.status_code not in (200, 202):
            self._violation(f"POST /adapt was answered {answer.status_code}: {answer.text[:300]}")
            raise GaveUp(answer.text)
        identity = str(answer.json()["adapter_id"])
        with self._lock:
            self.counts["accepted"] += 1
            return self.accepted.setdefault((tenant, identity), Accepted(identity, tenant, support))

    def adapt_once(self, tenant: str, support: int, *, to: str = "") -> None:
        """Post a support set with an Idempotency-Key.

        A repetition must name the same adapter, whatever `default` means by then.
        """
        body, headers = {"support": support_set(support), "options": {"label_words": False}}, {"Idempotency-Key": f"once-{support}"}
        answer = self.failover.send("POST", "/adapt", self.keys[tenant], body, headers, to=to)
        identity = answer.json().get("adapter_id", "")
        expected = self.once.setdefault((tenant, support), identity)
        if answer.status_code not in (200, 202) or identity != expected:
            self._violation(
                f"a repetition with Idempotency-Key once-{support} was answered {answer.status_code} with {identity}, "
                f"expected {expected}: {answer.text[:200]}"
            )
            return
        with self._lock:
            self.accepted.setdefault((tenant, identity), Accepted(identity, tenant, support))

    def repeat_all_once(self, *, to: str = "") -> None:
        for tenant, support in list(self.once):
            self.adapt_once(tenant, support, to=to)

    def check_lists(self) -> None:
        """Check the lists of adapters (all accepted ones, all ready) and the usage."""
        for tenant, key in self.keys.items():
            listed, cursor = dict[str, str](), ""
            while cursor is not None:
                page = self.failover.send("GET", f"/adapters?limit=200{cursor and f'&cursor={cursor}'}", key).json()
                listed |= {row["adapter_id"]: row["status"] for row in page["adapters"]}
                cursor = page["next_cursor"]
            lost = {identity for accepted_by, identity in self.accepted if accepted_by == tenant} - listed.keys()
            wrong = Counter(status for status in listed.values() if status not in ("ready", "evicted"))
            if lost or wrong:
                self._violation(f"the list of tenant {tenant} lacks {len(lost)} accepted adapters, and has others: {dict(wrong)}")
            used = self.failover.send("GET", "/usage", key).json()
            aliases = sum(of == tenant for of, _ in self.aliases)
            expected = {"adapters": len(listed), "aliases": aliases, "jobs": 0}
            if {name: used[name] for name in expected} != expected:
                self._violation(f"the usage of tenant {tenant}: expected {expected}, got {used}")

    def adapt_many(self, tenant: str, supports: Sequence[int], *, to: str = "") -> list[Accepted]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda support: self.adapt(tenant, support, to=to), supports))

    def wait_ready(self, adapters: Sequence[Accepted], seconds: float = 120) -> None:
        """Wait until all `adapters` are ready. Each one that is not in time, or has failed, is a violation."""
        deadline = time.monotonic() + seconds
        for adapter in adapters:
            while (view := self.view(adapter))["status"] not in ("ready", "evicted"):
                if view["status"] in ("failed", "expired", "lost") or time.monotonic() > deadline:
                    self._violation(f"adapter {adapter.identity} is {view['status']}: {view.get('error')}")
                    break
                time.sleep(0.1)
            else:
                adapter.is_ready = True

    def view(self, adapter: Accepted, *, to: str = "") -> dict[str, Any]:
        """Return an adapter as the API shows it, or {"status": "lost"} if there is no such adapter."""
        answer = self.failover.send("GET", f"/adapters/{adapter.identity}", self.keys[adapter.tenant], to=to)
        if answer.status_code != 200:
            self._violation(f"accepted adapter {adapter.identity} was answered {answer.status_code}: {answer.text[:300]}")
            return {"status": "lost"}
        view: dict[str, Any] = answer.json()
        return view

    def pin(self, adapter: Accepted) -> None:
        self._expect("PUT", f"/adapters/{adapter.identity}/pin", adapter.tenant)

    def move_alias(self, alias: str, adapter: Accepted) -> None:
        """Point an alias at an adapter, and check that the alias then points there."""
        tenant, before = adapter.tenant, self.aliases.get((adapter.tenant, alias))
        body = {"adapter_id": adapter.identity, "expected": before}
        answer = self.failover.send("PUT", f"/aliases/{alias}", self.keys[tenant], body)
        is_repeated = answer.status_code == 409 and answer.json().get("alias_points_at") == adapter.identity
        if answer.status_code != 200 and not is_repeated:  # a try whose answer was lost may have moved it
            self._violation(f"PUT /aliases/{alias} was answered {answer.status_code}: {answer.text[:300]}")
            return
        self.aliases[tenant, alias] = adapter.identity
        self.counts["alias moves"] += 1
        self.check_alias(tenant, alias)

    def check_alias(self, tenant: str, alias: str) -> None:
        answer = self.failover.send("GET", f"/aliases/{alias}", self.keys[tenant])
        expected = self.aliases[tenant, alias]
        if answer.status_code != 200 or answer.json()["adapter_id"] != expected:
            self._violation(f"alias {alias} points at {expected}, and was answered {answer.status_code}: {answer.text[:200]}")

    def evict(self, adapter: Accepted) -> None:
        """Remove the stored weights of an adapter, as a cache that is full does."""
        for key in list(self.weights.scan_iter(f"qs:{adapter.tenant}:weights:{adapter.identity}:*", count=1000)):
            self.counts["evictions"] += int(self.weights.delete(key))

    def check_prediction(self, adapter: Accepted, *, alias: str = "", to: str = "") -> None:
        """Predict with an adapter, and check its labels, its probabilities and the digest of its weights.

        `alias`: the name to use in place of its id. The digest must be the one on record right before or right after the call.
        """
        before = self.view(adapter, to=to)
        body = {"adapter_id": alias or adapter.identity, "inputs": INPUTS}
        answer = self.failover.send("POST", "/predict", self.keys[adapter.tenant], body, to=to)
        self.counts["predictions"] += 1
        if answer.status_code != 200:
            self._violation(f"a prediction of {adapter.identity} was answered {answer.status_code}: {answer.text[:300]}")
            return
        after, content = self.view(adapter, to=to), answer.json()
        if content["adapter_id"] != adapter.identity:
            self._violation(f"a prediction of {alias or adapter.identity} came from {content['adapter_id']}")
        if content["digest"] not in (before.get("digest"), after.get("digest")):
            self._violation(
                f"a prediction of {adapter.identity} has digest {content['digest'][:12]}, the record had "
                f"{str(before.get('digest'))[:12]} before and {str(after.get('digest'))[:12]} after it"
            )
        self._compare(adapter, str(after.get("initialization_digest")), content["predictions"])

    def check_all(self, *, to: str = "") -> None:
        """Predict once with every adapter that is ready, at 4 at a time."""
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda adapter: self.check_prediction(adapter, to=to), self.ready()))

    def ready(self) -> list[Accepted]:
        with self._lock:
            return [adapter for adapter in self.accepted.values() if adapter.is_ready]

    # Continuous traffic

    def start(self) -> None:
        """Start the threads that predict, adapt, move aliases and evict weights, until `stop`."""
        actions: list[tuple[Callable[[random.Random], None], float]] = [
            (self._predict_some, 0.01),
            (self._predict_some, 0.01),
            (self._adapt_some, 1.0),
            (self._move_some, 0.5),
            (self._evict_some, 0.5),
        ]
        for number, (action, pause) in enumerate(actions):
            self._threads.append(threading.Thread(target=self._repeat, args=(action, pause, number), name=f"traffic-{number}"))
            self._threads[-1].start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def close(self) -> None:
        self.stop()
        self.failover.close()

    def _repeat(self, action: Callable[[random.Random], None], pause: float, seed: int) -> None:
        draw = random.Random(seed)
        while not self._stopping.wait(pause):
            try:
                action(draw)
            except GaveUp as error:
                self._violation(str(error))
            except Exception as error:  # an answer that cannot even be read is one as well
                self._violation(f"{action.__name__}: {type(error).__name__}: {error}")

    def _predict_some(self, draw: random.Random) -> None:
        self.check_prediction(draw.choice(self.ready()))

    def _adapt_some(self, draw: random.Random) -> None:
        tenant = draw.choice(list(self.keys))
        # Half of the support sets are ones that some version has learned before, for another tenant perhaps.
        if draw.random() < 0.5:
            support = draw.choice(self.ready()).support
        else:
            support, self._next_support = self._next_support, self._next_support + 1
        self.adapt(tenant, support)
        with self._lock:
            waiting = [adapter for adapter in self.accepted.values() if not adapter.is_ready]
        for adapter in waiting:
            adapter.is_ready = self.view(adapter)["status"] == "ready"

    def _move_some(self, draw: random.Random) -> None:
        """Move one alias, and predict by it. Only this thread moves aliases, so their targets are known."""
        tenant, alias = draw.choice(list(self.aliases))
        adapter = draw.choice([adapter for adapter in self.ready() if adapter.tenant == tenant])
        self.move_alias(alias, adapter)
        self.check_prediction(adapter, alias=alias)

    def _evict_some(self, draw: random.Random) -> None:
        self.evict(draw.choice(self.ready()))

    # Helpers

    def _expect(self, method: str, path: str, tenant: str) -> None:
        answer = self.failover.send(method, path, self.keys[tenant])
        if answer.status_code not in (200, 204):
            self._violation(f"{method} {path} was answered {answer.status_code}: {answer.text[:300]}")

    def _compare(self, adapter: Accepted, initialization: str, predictions: Predictions) -> None:
        with self._lock:
            self.digests_of_initializations.add(initialization)
            expected = self.references.setdefault((adapter.support, initialization), predictions)
        for wanted, got in zip(expected, predictions, strict=True):
            largest = max(abs(p - got["probabilities"].get(label, -1)) for label, p in wanted["probabilities"].items())
            ranked = sorted(wanted["probabilities"].values())
            if largest > TOLERANCE or (wanted["label"] != got["label"] and ranked[-1] - ranked[-2] > 2 * TOLERANCE):
                self._violation(f"adapter {adapter.identity} predicted {wanted['label']} before, and now differs by {largest:.4f}")
                return

    def _violation(self, line: str) -> None:
        with self._lock:
            self.violations.append(line)


def support_set(number: int) -> list[dict[str, str]]:
    """Return support set number `number`: three labels with two examples each."""
    draw, words = random.Random(number), WORDS.split()
    return [{"input": f"{label} {' '.join(draw.choices(words, k=3))}", "label": label} for label in _LABELS for _ in range(2)]
