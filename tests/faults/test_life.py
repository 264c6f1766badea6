"""A state-machine test: after random operations on adapters, the service agrees with a simple model."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from service.running.standalone import url_of
from tests.end_to_end.conftest import Served, is_worker, served
from tests.end_to_end.test_service import BODY, SUPPORT, predict

WHICH = st.integers(0, 2)
DIGESTS: dict[int, str] = {}
"""The digest of the adapter that each request body creates. It must be the same in all runs."""


@pytest.fixture(scope="module")
def service_and_records(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Served, "redis.Redis"]]:
    """Run a service. Yield it with a Redis client that is connected to its records.

    The predictor has room for only one adapter on the device, so it often fetches weights from the cache.
    """
    folder = tmp_path_factory.mktemp("life")
    variables = {**environment, "BANK_MB": "0.001", "SHELF_MB": "0", "LEASE_SECONDS": "2", "READAPT_WAIT_SECONDS": "50"}
    with served(folder, variables) as service:
        service.wait_ready()
        url = url_of(folder / "data")
        assert url is not None
        client = redis.Redis.from_url(url)
        yield service, client
        client.close()


class Life(RuleBasedStateMachine):
    """A simple model of three adapters, one for each request body, with operations drawn at random.

    `state` is "none" (never created, or deleted), "requested" (possibly not finished), "ready" (was ready when last seen) or
    "expired".
    """

    service: Served
    client: "redis.Redis"
    kills = 0

    def __init__(self) -> None:
        super().__init__()
        self.state = ["none"] * 3
        self.pinned = [False] * 3
        self.ids = [""] * 3
        for view in self.service.http.get("/adapters", params={"limit": 200}).json()["adapters"]:
            assert self.service.http.delete(f"/adapters/{view['adapter_id']}").status_code == 204

    def body(self, which: int) -> dict[str, Any]:
        return {**BODY, "options": {"seed": 900 + which, "steps": 3}, "ttl_seconds": 3600}

    @rule(which=WHICH, wait=st.booleans())
    def adapt(self, which: int, wait: bool) -> None:
        headers = {"Prefer": "wait=60"} if wait else {}
        answer = self.service.http.post("/adapt", json=self.body(which), headers=headers)
        assert answer.status_code in (200, 202), answer.text
        identity, status = answer.json()["adapter_id"], answer.json()["status"]
        assert self.ids[which] in ("", identity)
        assert status == "ready" if wait else status in ("queued", "running", "ready")
        self.ids[which] = identity
        self.state[which] = "ready" if status == "ready" else "requested"

    @rule(which=WHICH)
    def wait(self, which: int) -> None:
        if self.state[which] == "requested":
            self.adapt(which, True)

    @rule(which=WHICH)
    def predict(self, which: int) -> None:
        answer = predict(self.service, self.ids[which] or "a0", [SUPPORT[0]["input"]])
        if self.state[which] == "none":
            assert answer.status_code == 404
        elif self.state[which] == "expired":
            assert answer.status_code == 409 and answer.json()["adapter_status"] == "expired"
        elif self.state[which] == "requested" and answer.status_code == 409:
            assert answer.json()["adapter_status"] in ("queued", "running")
        else:
            assert answer.status_code == 200, answer.text
            assert answer.json()["digest"] == DIGESTS.setdefault(which, answer.json()["digest"])
            self.state[which] = "ready"

    @rule(which=WHICH, damage=st.sampled_from(["gone", "corrupt", "truncated"]))
    def damage_weights(self, which: int, damage: str) -> None:
        """Delete, corrupt or truncate the weights in the cache."""
        for key in list(self.client.scan_iter(f"qs:default:weights:{self.ids[which] or 'nothing'}:*")):
            if damage == "gone":
                self.client.delete(key)
            elif damage == "corrupt":
                self.client.setrange(key, 300, b"\x00\xff\x00\xff")
            else:
                self.client.set(key, b"short", keepttl=True)

    @rule(which=WHICH)
    def expire(self, which: int) -> None:
        """Change the record as if the adapter's time to live had passed."""
        if self.state[which] == "ready" and not self.pinned[which]:
            self.wait_until_idle()
            self.client.hset(f"qs:default:adapter:{self.ids[which]}", "expires_at", 1)
            self.state[which] = "expired"

    @rule(which=WHICH, pinned=st.booleans())
    def pin(self, which: int, pinned: bool) -> None:
        answer = self.service.http.request("PUT" if pinned else "DELETE", f"/adapters/{self.ids[which] or 'a0'}/pin")
        assert answer.status_code == {"none": 404, "expired": 409}.get(self.state[which], 204)
        if answer.status_code == 204:
            self.pinned[which] = pinned

    @rule(which=WHICH)
    def delete(self, which: int) -> None:
        answer = self.service.http.delete(f"/adapters/{self.ids[which] or 'a0'}")
        assert answer.status_code == (404 if self.state[which] == "none" else 204)
        deadline = time.monotonic() + 10  # a worker that was running the job may just have stored weights, and removes them now
        while left := list(self.client.scan_iter(f"qs:*{self.ids[which] or 'nothing'}*")):
            assert time.monotonic() < deadline, left
            time.sleep(0.02)
        self.state[which], self.pinned[which] = "none", False

    @rule()
    def kill_worker(self) -> None:
        """Kill the worker, at most three times in all, because every restart is delayed longer."""
        if Life.kills == 3:
            return
        Life.kills += 1
        for process in self.service.family():
            with contextlib.suppress(psutil.NoSuchProcess):  # a process that was killed earlier may still be listed
                if is_worker(process):
                    process.kill()
        deadline = time.monotonic() + 60
        while self.client.zcard("qs:running") and time.monotonic() < deadline:
            time.sleep(0.05)

    def wait_until_idle(self) -> None:
        deadline = time.monotonic() + 60
        while self.client.zcard("qs:pending"):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    @invariant()
    def the_list_agrees_with_the_model(self) -> None:
        views = {v["adapter_id"]: v for v in self.service.http.get("/adapters", params={"limit": 200}).json()["adapters"]}
        assert set(views) == {identity for identity, state in zip(self.ids, self.state, strict=True) if state != "none"}
        for which, identity in enumerate(self.ids):
            if identity in views:
                view, state = views[identity], self.state[which]
                allowed = {"expired"} if state == "expired" else {"queued", "running", "ready", "evicted"}
                assert view["status"] in allowed and view["pinned"] == self.pinned[which]
                assert view["digest"] is None or view["digest"] == DIGESTS.setdefault(which, view["digest"])

    def teardown(self) -> None:
        self.wait_until_idle()


@pytest.mark.parametrize("examples", [8, pytest.param(60, marks=pytest.mark.long)])
def test_the_service_agrees_with_the_model(service_and_records: tuple[Served, "redis.Redis"], examples: int) -> None:
    Life.service, Life.client = service_and_records
    Life.kills = 0
    # The short form runs the same sequences every time. Shrinking is off, because a service never returns to the same state.
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=examples,
            stateful_step_count=15,
            deadline=None,
            derandomize=examples == 8,
            phases=[Phase.generate],
            suppress_health_check=checks,
        ),
    )
