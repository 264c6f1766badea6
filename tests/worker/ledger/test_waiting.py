"""Which jobs are announced again, and in which queue."""

import time

import redis

from tests.worker.ledger.jobs import DAY, RECIPE, claimed
from worker.ledger.records import Records


def test_due_names_what_was_lost_once_and_only_that(records: Records, redis_client: "redis.Redis") -> None:
    records.accept("t", "a1", RECIPE, DAY, ())
    records.accept("t", "a2", RECIPE, DAY, ())
    records.accept("t", "a3", RECIPE, DAY, ())
    claimed(records, "a1", lease_ms=1)
    claimed(records, "a2", lease_ms=60_000)
    time.sleep(0.005)
    assert records.waiting.due() == [("t", "a1", "")]
    assert records.waiting.due() == []  # put off: another reaper need not repeat it
    for name in ("a4", "a3"):
        redis_client.zadd("qs:pending", {f"t/{name}": 0})  # as if it were time to look at it
    redis_client.hset("qs:t:adapter:a3", "queued_at", 5_000)
    records.accept("t", "a4", RECIPE, DAY, ())
    assert records.waiting.due(oldest={"": ("t", "a3")}) == []  # its own wake-up waits, so all later ones do
    redis_client.zadd("qs:pending", {"t/a3": 0})
    assert records.waiting.due(oldest={"": ("t", "a4")}) == [("t", "a3", "")]  # a later one waits: its own is gone
    redis_client.zadd("qs:pending", {"t/a3": 0})
    assert records.waiting.due(oldest={"": ("t", "a4")}) == []  # it has been announced since
    redis_client.zadd("qs:pending", {"t/a3": 0})
    assert records.waiting.due(oldest={"": ("t", "deleted")}) == []
    redis_client.zadd("qs:pending", {"t/a3": 0})
    assert records.waiting.due() == [("t", "a3", "")]  # no wake-up waits


def test_each_queue_has_wake_ups_of_its_own(records: Records, redis_client: "redis.Redis") -> None:
    for name, queue in (("a1", "q"), ("a2", "r"), ("a3", "q")):
        records.accept("t", name, RECIPE, DAY, (), queue=queue)
        redis_client.zadd("qs:pending", {f"t/{name}": 0})
    assert records.waiting.queues() == ["q", "r"]
    assert records.waiting.due(oldest={"q": ("t", "a1")}) == [("t", "a2", "r")]  # nothing waits in r
    record = records.get("t", "a2")
    assert record is not None and record.queue == "r"
