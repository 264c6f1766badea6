"""Jobs whose weights the cache cannot store, because it is full or unreachable."""

from pathlib import Path
from typing import Any

import pytest
import redis

from metatrain.models.base import Base
from tests.worker.jobs import recipe, run_until_finished
from worker.job import JobRunner
from worker.ledger import names
from worker.ledger.claims import Claimant
from worker.ledger.messages import Outcome
from worker.ledger.weights_cache import WeightStore
from worker.runtime import MadeAdapter, Runtime
from worker.settings import WorkerSettings


class FullCache(WeightStore):
    """A weight store on a real Redis server that is out of memory during each write."""

    def put(self, *arguments: Any) -> None:
        server: Any = self._redis
        server.config_set("maxmemory", 1)  # with a limit at the memory in use, the write would succeed once a buffer is freed
        try:
            super().put(*arguments)
        finally:
            server.config_set("maxmemory", 0)


def test_a_full_cache_uses_up_attempts_and_is_the_reason_of_the_failure(runner: JobRunner, tiny: Base, redis_client: Any) -> None:
    with_full_cache = JobRunner("w", WorkerSettings(), runner.records, FullCache(redis_client), runner.runtime)
    runner.records.accept("t", "a1", recipe(tiny), 60_000, ())
    with_full_cache.run("t", "a1")
    record = runner.records.get("t", "a1")
    assert record is not None and (record.status, record.attempt) == ("queued", 1)
    assert str(record.last_error).startswith("the cache refused the weights: command not allowed when used memory")
    failed = run_until_finished(with_full_cache)
    assert failed.status == "failed" and failed.attempt == 3 and failed.digest is None
    assert str(failed.error).startswith("no worker finished this job in 3 attempts; the last one ended with: the cache refused")
    assert list(redis_client.scan_iter("qs:t:weights:*")) == []
    assert [dead.adapter_id for dead in runner.records.dead_jobs.latest()] == ["a1"]
    assert runner.records.dead_jobs.revive("t", "a1") and not runner.records.dead_jobs.revive("t", "a1")
    assert run_until_finished(runner).status == "ready" and runner.records.dead_jobs.latest() == []


def test_an_unreachable_cache_uses_up_no_attempt(
    runner: JobRunner, tiny: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.weights.CACHE_WAIT_SECONDS", 0.3)
    unreachable = WeightStore(redis.Redis.from_url(f"unix://{tmp_path}/nothing.sock"))
    without_cache = JobRunner("w", WorkerSettings(), runner.records, unreachable, runner.runtime)
    runner.records.accept("t", "a1", recipe(tiny), 60_000, ())
    for _ in range(4):
        without_cache.run("t", "a1")
    record = runner.records.get("t", "a1")
    assert record is not None and (record.status, record.attempt) == ("queued", 0)
    assert record.last_error == "the cache is out of reach: ConnectionError"
    assert run_until_finished(runner).attempt == 1


class FullMeanwhile(Runtime):
    """A runtime during whose inner loops the server runs out of memory."""

    server: Any

    def adapt(self, *arguments: Any, **named: Any) -> MadeAdapter:
        made = super().adapt(*arguments, **named)
        self.server.config_set("maxmemory", 1)
        return made


def test_on_one_server_weights_and_record_are_written_in_one_step(runner: JobRunner, tiny: Base, redis_client: Any) -> None:
    together = JobRunner("w", WorkerSettings(), runner.records, runner.store, runner.runtime, one_server=True)
    runner.records.accept("t", "a1", recipe(tiny), 60_000, ())
    runner.records.accept("t", "a2", recipe(tiny), 60_000, ())
    runner.records.pin("t", "a2", True)
    for identity, lifetimes in (("a1", range(50_000, 60_001)), ("a2", [-1])):
        together.run("t", identity)
        record = runner.records.get("t", identity)
        assert record is not None and record.status == "ready" and "store" in record.timings
        assert runner.store.get("t", identity, record.fence, str(record.digest))
        assert redis_client.pttl(names.weights("t", identity, record.fence)) in lifetimes
    runner.records.accept("t", "a3", recipe(tiny), 60_000, ())
    held = runner.records.claims.claim("t", "a3", Claimant("w"))
    runner.records.delete("t", "a3")
    assert held is not None
    assert runner.records.claims.commit(held, Outcome(status="ready"), runner.store.sealed("t", "a3", held.fence, b"late")) is None
    assert not runner.store.has("t", "a3", held.fence)  # a worker that lost its claim leaves no weights


def test_a_full_server_that_has_weights_and_records_uses_up_attempts(runner: JobRunner, tiny: Base, redis_client: Any) -> None:
    full = FullMeanwhile(*runner.runtime.residents)
    full.server = redis_client
    together = JobRunner("w", WorkerSettings(), runner.records, runner.store, full, one_server=True)
    runner.records.accept("t", "a1", recipe(tiny), 60_000, ())
    together.run("t", "a1")
    redis_client.config_set("maxmemory", 0)
    record = runner.records.get("t", "a1")
    assert record is not None and (record.status, record.attempt) == ("queued", 1)
    assert str(record.last_error).startswith("the cache refused the weights: command not allowed when used memory")
    assert list(redis_client.scan_iter("qs:t:weights:*")) == []
    assert run_until_finished(runner).status == "ready"
