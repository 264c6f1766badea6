"""A cache that is full, or away."""

from pathlib import Path
from typing import Any

import pytest
import redis

from metatrain.models.base import Base
from tests.worker.jobs import end, recipe
from worker.job import JobRunner
from worker.ledger.weights_cache import WeightStore
from worker.settings import WorkerSettings


class FullCache(WeightStore):
    """The real server, which has no memory left while a write runs."""

    def put(self, *arguments: Any) -> None:
        server: Any = self._redis
        server.config_set("maxmemory", 1)  # a limit at what is used now would hold only until a buffer is freed
        try:
            super().put(*arguments)
        finally:
            server.config_set("maxmemory", 0)


def test_a_full_cache_costs_attempts_and_then_fails_with_that_reason(runner: JobRunner, tiny: Base, redis_client: Any) -> None:
    full = FullCache(redis_client)
    refused = JobRunner("w", WorkerSettings(), runner.records, full, runner.runtime)
    runner.records.accept("t", "a1", recipe(tiny), 60_000, ())
    refused.run("t", "a1")
    record = runner.records.get("t", "a1")
    assert record is not None and (record.status, record.attempt) == ("queued", 1)
    assert str(record.last_error).startswith("the cache refused the weights: command not allowed when used memory")
    failed = end(refused)
    assert failed.status == "failed" and failed.attempt == 3 and failed.digest is None
    assert str(failed.error).startswith("no worker finished this job in 3 attempts; the last one ended with: the cache refused")
    assert list(redis_client.scan_iter("qs:t:weights:*")) == []
    assert [dead.adapter_id for dead in runner.records.dead_jobs.latest()] == ["a1"]
    assert runner.records.dead_jobs.revive("t", "a1") and not runner.records.dead_jobs.revive("t", "a1")
    assert end(runner).status == "ready" and runner.records.dead_jobs.latest() == []


def test_a_cache_that_is_away_costs_no_attempt(
    runner: JobRunner, tiny: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.weights.CACHE_WAIT_SECONDS", 0.3)
    nowhere = WeightStore(redis.Redis.from_url(f"unix://{tmp_path}/nothing.sock"))
    away = JobRunner("w", WorkerSettings(), runner.records, nowhere, runner.runtime)
    runner.records.accept("t", "a1", recipe(tiny), 60_000, ())
    for _ in range(4):
        away.run("t", "a1")
    record = runner.records.get("t", "a1")
    assert record is not None and (record.status, record.attempt) == ("queued", 0)
    assert record.last_error == "the cache is out of reach: ConnectionError"
    assert end(runner).attempt == 1
