"""A job whose wake-up message is lost is announced again, in its own queue."""

import time

import redis

from tests.worker.ledger.jobs import DAY, RECIPE, claimed
from worker.ledger.records import Records


def test_due_lists_each_lost_job_once_and_no_other(records: Records, redis_client: "redis.Redis") -> None:
    records.accept("t", "a1", RECIPE, DAY, ())
    records.accept("t", "a2", RECIPE, DAY, ())
    records.accept("t", "a3", RECIPE, DAY, ())
    claimed(records, "a1", lease_ms=1)
    claimed(records, "a2", lease_ms=60_000)
    time.sleep(0.005)
    assert records.waiting.due() == [("t", "a1", "")]
    assert records.waiting.due() == []  # postponed, so that another reaper does not announce it too
    for name in ("a4", "a3"):
        redis_client.zadd("qs:pending", {f"t/{name}": 0})  # as if their check were due
    redis_client.hset("qs:t:adapter:a3", "queued_at", 5_000)
    records.accept("t", "a4", RECIPE, DAY, ())
    assert records.waiting.due(oldest={"": ("t", "a3")}) == []  # the oldest wake-up is a3's own, so it is not lost
    redis_client.zadd("qs:pending", {"t/a3": 0})
    assert records.waiting.due(oldest={"": ("t", "a4")}) == [("t", "a3", "")]  # the oldest is of a later job: a3's is lost
    redis_client.zadd("qs:pending", {"t/a3": 0})
    assert records.waiting.due(oldest={"": ("t", "a4")}) == []  # a3 has been announced again since
    redis_client.zadd("qs:pending", {"t/a3": 0})
    assert records.waiting.due(oldest={"": ("t", "deleted")}) == []
    redis_client.zadd("qs:pending", {"t/a3": 0})
    assert records.waiting.due() == [("t", "a3", "")]  # the queue has no wake-up


def test_lost_wake_ups_are_found_for_each_queue_separately(records: Records, redis_client: "redis.Redis") -> None:
    for name, queue in (("a1", "q"), ("a2", "r"), ("a3", "q")):
        records.accept("t", name, RECIPE, DAY, (), queue=queue)
        redis_client.zadd("qs:pending", {f"t/{name}": 0})
    assert records.waiting.queues() == ["q", "r"]
    assert records.waiting.due(oldest={"q": ("t", "a1")}) == [("t", "a2", "r")]  # the queue r has no wake-up
    record = records.get("t", "a2")
    assert record is not None and record.queue == "r"
