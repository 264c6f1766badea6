"""The load of the queues, from which an autoscaler computes a number of workers."""

import time
from typing import Any, cast

import pytest
import redis

from tests.worker.ledger.jobs import DAY, RECIPE
from worker.ledger import names
from worker.ledger.claims import Claim, Claimant
from worker.ledger.messages import Outcome
from worker.ledger.queue_load import QueueLoad
from worker.ledger.records import Records


def accepted(records: Records, *jobs: str, queue: str) -> None:
    for job in jobs:
        records.accept("t", job, RECIPE, DAY, (), queue=queue)


def running(records: Records, job: str, queue: str) -> Claim:
    claim = records.claims.claim("t", job, Claimant("w", lease_ms=60_000, queues={queue: []}))
    assert claim is not None
    return claim


def test_jobs_are_counted_by_queue_and_status(records: Records) -> None:
    accepted(records, "a1", "a2", "a3", "a4", queue="one")
    accepted(records, "b1", queue="two")
    done = running(records, "a1", "one")
    running(records, "a2", "one")
    assert records.claims.commit(done, Outcome(status="ready", digest="f"))
    loads = records.queue_loads.read()
    assert {queue: (load.queued, load.running) for queue, load in loads.items()} == {"one": (2, 1), "two": (1, 0)}
    running(records, "b1", "two")
    records.delete("t", "b1")
    assert records.queue_loads.read()["two"] == QueueLoad()  # a queue without jobs is still listed


def test_the_age_is_that_of_the_oldest_waiting_job(records: Records) -> None:
    began = time.monotonic()
    accepted(records, "a1", queue="one")
    time.sleep(0.2)
    accepted(records, "a2", queue="one")
    age = records.queue_loads.read()["one"].oldest_seconds
    assert 0.2 <= age <= time.monotonic() - began + 0.01
    claim = running(records, "a1", "one")
    assert records.queue_loads.read()["one"].oldest_seconds < age  # a1 no longer waits
    records.claims.hand_back(claim, "its worker was stopped", delay_ms=0, is_attempt=False)
    assert records.queue_loads.read()["one"].oldest_seconds > age  # since it was accepted, not since it was handed back


def test_the_wait_follows_from_measured_times_and_workers(records: Records) -> None:
    accepted(records, "a1", "a2", "a3", queue="one")
    load = records.queue_loads.read()["one"]
    assert load.job_seconds is None and load.estimated_wait(2) is None  # nothing was measured yet
    for milliseconds in (1000.0, 2000.0):
        records.queue_loads.observe("one", milliseconds)
    running(records, "a1", "one")
    load = records.queue_loads.read()["one"]
    assert load.job_seconds == pytest.approx(1.0 + 0.2 * (2.0 - 1.0))
    assert load.estimated_wait(2) == pytest.approx((2 + 1 / 2) * 1.2 / 2)
    assert load.estimated_wait(0) is None


def test_more_jobs_than_one_step_counts(records: Records) -> None:
    for number in range(1101):
        accepted(records, f"a{number}", queue=f"q{number % 2}")
    loads = records.queue_loads.read()
    assert (loads["q0"].queued, loads["q1"].queued) == (551, 550)


def test_finished_records_cost_nothing(records: Records, redis_client: "redis.Redis") -> None:
    for number in range(300):
        accepted(records, f"a{number}", queue="one")
        assert records.claims.commit(running(records, f"a{number}", "one"), Outcome(status="ready", digest="f"))
    accepted(records, "waits", queue="one")
    redis_client.config_resetstat()
    assert records.queue_loads.read()["one"].queued == 1
    statistics = cast(dict[str, dict[str, Any]], redis_client.info("commandstats"))
    calls = {name.removeprefix("cmdstat_"): entry["calls"] for name, entry in statistics.items()}
    assert calls["hmget"] == 1 and calls["zrange"] == 1 and "scan" not in calls and "keys" not in calls


def test_a_job_of_a_version_without_queues_is_counted(records: Records, redis_client: "redis.Redis") -> None:
    accepted(records, "a1", queue="one")
    redis_client.hdel(names.record("t", "a1"), "queue")
    assert records.queue_loads.read()[""].queued == 1
