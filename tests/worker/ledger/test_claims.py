"""Claims, leases, fences and commits of jobs on a real Redis server."""

import time
from typing import Any, cast

import pytest
import redis

from tests.conftest import RedisServer
from tests.worker.ledger.jobs import DAY, RECIPE, claim, claimed
from worker.ledger.claims import Claimant
from worker.ledger.messages import DONE_CHANNEL, Outcome
from worker.ledger.records import Records


def test_after_an_expired_lease_the_fence_refuses_the_first_worker(records: Records) -> None:
    records.accept("t", "a1", RECIPE, DAY, ())
    stale = claimed(records, lease_ms=20)
    assert claim(records) is None
    time.sleep(0.03)
    fresh = claimed(records)
    assert fresh.fence > stale.fence
    assert not records.claims.heartbeat(stale, 10_000, [1.0])
    assert not records.claims.commit(stale, Outcome(status="ready", digest="stale"))
    record = records.get("t", "a1")
    assert record is not None and record.status == "running" and record.support_loss == ()
    assert records.claims.heartbeat(fresh, 10_000, [3.0])
    assert records.claims.commit(fresh, Outcome(status="ready", digest="fresh"))
    assert not records.claims.commit(fresh, Outcome(status="failed", error="twice"))
    record = records.get("t", "a1")
    assert record is not None and record.digest == "fresh" and record.attempt == 2


def test_a_claim_from_before_a_deletion_cannot_commit_after_it(records: Records) -> None:
    records.accept("t", "a1", RECIPE, DAY, ())
    before = claimed(records)
    assert records.delete("t", "a1") == before.fence
    assert records.get("t", "a1") is None
    assert not records.claims.commit(before, Outcome(status="ready", digest="old"))
    records.accept("t", "a1", RECIPE, DAY, ())
    assert claimed(records).fence > before.fence
    assert not records.claims.commit(before, Outcome(status="ready", digest="old"))
    assert records.delete("t", "never") is None


def test_a_job_that_loses_every_worker_ends_as_failed(records: Records) -> None:
    records.accept("t", "a1", RECIPE, DAY, ())
    for _ in range(2):
        claimed(records, lease_ms=1)
        time.sleep(0.005)
    assert claim(records, attempts=2) is None
    record = records.get("t", "a1")
    assert record is not None and record.status == "failed" and "2 attempts" in str(record.error)
    assert records.waiting.due() == []


def test_a_repeated_commit_takes_effect_once(records: Records) -> None:
    """Repeat a commit, as a worker does if the server's answer was lost."""
    records.accept("t", "a1", RECIPE, DAY, ())
    only = claimed(records)
    ready = Outcome(status="ready", digest="f")
    assert records.claims.commit(only, ready) is not None and records.claims.commit(only, ready) is not None
    assert records.claims.commit(only, Outcome(status="ready", digest="other")) is None
    counts = records.counts.read()
    assert counts["ready"] == 1 and counts["refused_commits"] == 1


def test_on_a_server_out_of_memory_jobs_still_end_and_can_be_deleted(redis_server: RedisServer) -> None:
    client = redis.Redis.from_url(redis_server.url)
    records = Records(client)
    for identity in ("a1", "a2", "a3", "a4"):
        records.accept("t", identity, RECIPE, DAY, ())
    first, second = claimed(records, "a1"), claimed(records, "a2")
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    with pytest.raises(redis.exceptions.ResponseError, match=r"used memory > .maxmemory."):
        records.accept("t", "a5", RECIPE, DAY, ())
    assert records.get("t", "a5") is None
    assert records.claims.heartbeat(first, 10_000) and records.claims.commit(first, Outcome(status="failed", error="because"))
    assert records.claims.hand_back(second, "because", delay_ms=0, is_attempt=True)
    assert claim(records, "a2", attempts=1) is None and [dead.adapter_id for dead in records.dead_jobs.latest()] == ["a2"]
    third = claimed(records, "a3")
    assert records.delete("t", "a3") == third.fence and records.get("t", "a3") is None
    assert records.pin("t", "a4", False) == DAY and records.dead_jobs.revive("t", "a2")
    assert not records.claims.heartbeat(third, 10_000)  # the claim is lost, because the job was deleted
    assert records.claims.commit(third, Outcome(status="ready", digest="f", size=1)) is None
    assert (records.counts.read()["overtaken"], records.counts.read()["refused_commits"]) == (1, 1)
    client.close()


def test_a_job_that_is_handed_back_waits_for_another_worker(records: Records) -> None:
    records.accept("t", "a1", RECIPE, DAY, ())
    first = claimed(records)
    assert records.claims.hand_back(first, "because", delay_ms=0, is_attempt=True)
    assert not records.claims.hand_back(first, "twice", delay_ms=0, is_attempt=True)
    assert not records.claims.heartbeat(first, 1000) and not records.claims.commit(first, Outcome(status="ready", digest="f"))
    record = records.get("t", "a1")
    assert record is not None and (record.status, record.attempt, record.last_error) == ("queued", 1, "because")
    assert records.waiting.due() == [("t", "a1", "")]
    second = claimed(records)
    assert records.claims.hand_back(second, "again", delay_ms=0, is_attempt=False)
    third = claimed(records)
    assert third.attempt == 2 and records.claims.commit(third, Outcome(status="ready", digest="f"))
    record = records.get("t", "a1")
    assert record is not None and record.last_error is None and record.attempt == 2


def test_a_fence_is_never_reused_even_if_a_new_master_lost_the_counter(records: Records, redis_client: "redis.Redis") -> None:
    records.accept("t", "a1", RECIPE, DAY, ())
    first = claimed(records)
    time.sleep(0.002)  # a fence is at least the time in ms, and a failover takes longer than 1 ms
    redis_client.delete("qs:fence")  # neither the latest fence nor the claim was replicated
    redis_client.hset("qs:t:adapter:a1", mapping={"status": "queued", "fence": 0})
    second = claimed(records)
    assert second.fence > first.fence
    assert not records.claims.heartbeat(first, 10_000) and records.claims.heartbeat(second, 10_000)


def test_a_worker_of_another_queue_cannot_claim_a_job(records: Records) -> None:
    records.accept("t", "a1", RECIPE, DAY, (), queue="q")
    another = Claimant("w", queues={"r": ()})
    assert records.claims.claim("t", "a1", another) is None and records.claims.claim_in_turn("t", "a1", another) is None
    assert records.claims.claim("t", "a1", Claimant("w", queues={"q": ()})) is not None


def test_the_end_of_a_job_is_published(records: Records, redis_client: "redis.Redis") -> None:
    channel = cast(Any, redis_client).pubsub()
    channel.subscribe(DONE_CHANNEL)
    assert channel.get_message(timeout=2)  # the confirmation of the subscription
    records.accept("t", "a1", RECIPE, DAY, ())
    records.claims.commit(claimed(records), Outcome(status="ready", digest="f"))
    message = channel.get_message(timeout=2)
    assert message is not None and message["data"] == b"t/a1"
    channel.close()
