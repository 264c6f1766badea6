"""Jobs whose weights the cache cannot store, because it is full or unreachable."""

from pathlib import Path
from typing import Any

import pytest
import redis

from metatrain.models.base import Base
from tests.worker.jobs import recipe, run_until_finished
from worker.job import JobRunner
from worker.ledger.weights_cache import WeightStore
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
