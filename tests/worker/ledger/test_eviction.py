"""The embedded server under memory pressure: it evicts weights and nothing else."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from service.running.standalone import _server_command
from tests.worker.ledger.jobs import DAY, RECIPE
from worker.app import celery_app
from worker.errors import KeyUsed, LimitReached
from worker.ledger.idempotency import IdempotencyKey
from worker.ledger.messages import ADAPT_TASK, wake_up
from worker.ledger.records import Records
from worker.ledger.usage import Usage
from worker.ledger.weights_cache import WeightStore


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Any]:
    """Run a server with the options of the embedded one, and yield a client."""
    socket = tmp_path / "redis.sock"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(_server_command(tmp_path, socket), stdout=log, stderr=log)
    client = redis.Redis.from_url(f"unix://{socket}")
    deadline = time.monotonic() + 20
    while True:
        try:
            client.ping()
            break
        except redis.RedisError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    yield client
    client.close()
    process.kill()
    process.wait()


def is_weights(key: bytes) -> bool:
    return b":weights:" in key


def test_weights_are_evicted_and_nothing_else(embedded: Any) -> None:
    records, usage, store = Records(embedded), Usage(embedded), WeightStore(embedded)
    app = celery_app(f"unix://{embedded.connection_pool.connection_kwargs['path']}", "q")
    for number in range(20):
        key = IdempotencyKey(f"key{number}", f"request{number}")
        records.accept("t", f"a{number}", RECIPE, DAY, (), queue="q", idempotency=key)
        app.send_task(ADAPT_TASK, kwargs=wake_up("t", f"a{number}"), queue="q")
        usage.take_requests(f"t{number}", 5, 5)
    app.close()
    records.workers.announce("w", {"queue": "q"}, 60)
    before = set(embedded.scan_iter("*"))
    assert [key for key in before if embedded.ttl(key) != -1] == []
    embedded.config_set("maxmemory", embedded.info("memory")["used_memory"] + 4_000_000)
    for number in range(200):
        store.put("t", f"w{number}", 1, b"w" * 100_000, DAY)
    assert embedded.info("stats")["evicted_keys"] > 100
    kept = set(embedded.scan_iter("*"))
    assert before <= kept and 0 < sum(map(is_weights, kept)) < 100
    for number in range(20):
        with pytest.raises(KeyUsed):
            records.accept("t", "other", RECIPE, DAY, (), idempotency=IdempotencyKey(f"key{number}", "another request"))
        assert usage.of(f"t{number}").requests_this_minute in (0, 5)  # 0 if a new minute has begun
    assert sum(embedded.llen(key) for key in embedded.scan_iter("qs:celery:q*")) == 20


def test_requests_that_an_earlier_version_counted_count(redis_client: Any) -> None:
    usage = Usage(redis_client)
    second, _ = redis_client.time()
    for minute in (second // 60, second // 60 + 1):
        redis_client.set(f"qs:t:requests:{minute}", 3, ex=120)
    usage.take_requests("t", 1, 5)
    with pytest.raises(LimitReached) as reached:
        usage.take_requests("t", 2, 5)
    assert reached.value.used == 4
