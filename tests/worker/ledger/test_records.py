"""Records on a real Redis server: they are accepted, read, pinned, queued again and deleted."""

import time

import pytest
import redis

from tests.conftest import RedisServer
from tests.worker.ledger.jobs import DAY, RECIPE, claim, claimed
from worker.errors import AdapterExpired
from worker.ledger.claims import Claimant
from worker.ledger.messages import Outcome
from worker.ledger.notes import Notes
from worker.ledger.record import Record
from worker.ledger.records import Records


def test_an_id_is_one_job_until_the_job_has_failed_or_expired(records: Records) -> None:
    assert records.accept("t", "a1", RECIPE, DAY, (1,)) == (True, "queued")
    assert records.accept("t", "a1", RECIPE, DAY, (1,)) == (False, "queued")
    first = claimed(records)
    assert first.recipe == RECIPE
    assert records.accept("t", "a1", RECIPE, DAY, ()) == (False, "running")
    assert claim(records) is None
    assert records.claims.commit(first, Outcome(status="failed", error="because"))
    record = records.get("t", "a1")
    assert record is not None and (record.status, record.error, record.truncated) == ("failed", "because", (1,))
    assert records.accept("t", "a1", RECIPE, DAY, ()) == (True, "queued")
    assert records.claims.commit(
        claimed(records), Outcome(status="ready", digest="f", timings={"inner_loop": 1.5}, support_loss=(2.0, 1.0))
    )
    assert records.accept("t", "a1", RECIPE, DAY, ()) == (False, "ready")
    record = records.get("t", "a1")
    assert record is not None and record.attempt == 1 and record.error is None
    assert (record.digest, record.timings, record.support_loss) == ("f", {"inner_loop": 1.5}, (2.0, 1.0))
    assert records.accept("t", "a1", RECIPE, 1, ()) == (False, "ready")  # the new TTL expires at once
    time.sleep(0.01)
    record = records.get("t", "a1")
    assert record is not None and record.status == "expired"
    assert records.accept("t", "a1", RECIPE, DAY, ()) == (True, "queued")


def test_a_conditional_delete_spares_a_record_that_was_accepted_again(records: Records) -> None:
    records.accept("t", "a1", RECIPE, DAY, ())
    assert records.delete("t", "a1", only="dead") is None and records.delete("t", "a1", only="over") is None
    old = claimed(records, lease_ms=1)
    time.sleep(0.005)
    assert claim(records, attempts=1) is None
    assert records.accept("t", "a1", RECIPE, DAY, ()) == (True, "queued")  # requested again: neither dead nor due to be removed
    assert records.delete("t", "a1", only="dead") is None
    records.claims.give_up("t", "a1", "decided before it was requested again", 1)
    again = claimed(records)
    assert again.previous_fence == old.fence  # any weights stored under the old fence must still be removed
    assert records.claims.commit(again, Outcome(status="ready", digest="f"))


def test_a_pinned_adapter_does_not_expire(records: Records, redis_client: "redis.Redis") -> None:
    records.accept("t", "a1", RECIPE, 1, ())
    assert records.pin("t", "a1", True) == 1
    kept = records.claims.commit(claimed(records), Outcome(status="ready", digest="f"))
    assert kept is not None and kept.pinned and kept.ttl_ms == 1
    assert records.pin("t", "unknown", True) is None and records.get("t", "unknown") is None
    time.sleep(0.01)
    record = records.get("t", "a1")
    assert record is not None and record.pinned and record.status == "ready"
    assert records.accept("t", "a1", RECIPE, 1, ()) == (False, "ready")
    assert redis_client.zscore("qs:retire", "t/a1") is None
    assert records.pin("t", "a1", False) == 1
    time.sleep(0.01)
    record = records.get("t", "a1")
    assert record is not None and not record.pinned and record.status == "expired"
    assert redis_client.zscore("qs:retire", "t/a1") is not None
    for pinned in (True, False):  # its bytes are no longer counted, so it must be accepted again
        with pytest.raises(AdapterExpired):
            records.pin("t", "a1", pinned)
    assert records.get("t", "a1") == record and redis_client.zscore("qs:retire", "t/a1") is not None


def test_a_record_without_a_queue_gets_one_when_it_is_queued_again(records: Records, redis_client: "redis.Redis") -> None:
    records.accept("t", "a1", RECIPE, DAY, ())
    redis_client.hdel("qs:t:adapter:a1", "queue")
    assert records.claims.commit(claimed(records), Outcome(status="ready", digest="f"))
    record = records.get("t", "a1")
    assert record is not None and record.queue == "" and records.requeue(record, "evicted", "q")
    assert records.claims.claim("t", "a1", Claimant("w", queues={"r": ()})) is None
    assert "q" in records.waiting.queues()


def test_a_ready_job_is_queued_again_only_once_and_only_if_its_fence_is_unchanged(records: Records) -> None:
    records.accept("t", "a1", RECIPE, DAY, ())
    records.claims.commit(claimed(records), Outcome(status="ready", digest="f"))
    ready = records.get("t", "a1")
    assert ready is not None and not ready.readapting
    assert records.requeue(ready, "evicted")
    again = records.get("t", "a1")
    assert again is not None and again.readapting and again.status == "queued" and again.expires_at == ready.expires_at
    assert not records.requeue(ready, "evicted")
    records.claims.commit(claimed(records), Outcome(status="ready", digest="f"))
    assert not records.requeue(ready, "evicted")  # another worker has already recomputed it
    done = records.get("t", "a1")
    assert done is not None and done.status == "ready" and not done.readapting
    records.delete("t", "a1")
    assert not records.requeue(done, "evicted") and records.get("t", "a1") is None  # deleted stays deleted


def test_tenants_do_not_see_each_other(records: Records) -> None:
    records.accept("t", "a1", RECIPE, DAY, ())
    assert records.get("other", "a1") is None
    assert records.delete("other", "a1") is None
    assert records.page("other", 10, None) == ([], None)
    assert records.get("t", "a1") is not None


def test_pages_are_newest_first_and_complete(records: Records) -> None:
    for i in range(7):
        records.accept("t", f"a{i}", RECIPE, DAY, ())
    records.delete("t", "a3")
    seen, cursor = [], None
    while True:
        page, cursor = records.page("t", 2, cursor)
        seen += [record.adapter_id for record in page]
        if cursor is None:
            break
    assert seen == ["a6", "a5", "a4", "a2", "a1", "a0"]


def test_pages_with_a_filter_read_many_records_and_miss_none(records: Records) -> None:
    for i in range(120):
        records.accept("t", f"a{i}", RECIPE, DAY, (), notes=Notes(name="wanted" if i % 7 == 0 else "other"))

    def wanted(record: Record) -> bool:
        filtered.append(record.adapter_id)
        return record.name == "wanted"

    seen: list[str] = []
    cursor: int | None = None
    for _ in range(30):
        filtered: list[str] = []
        page, cursor = records.page("t", 2, cursor, wanted, most=60)
        seen += [record.adapter_id for record in page]
        assert len(page) <= 2 and len(filtered) <= 60
        if cursor is None:
            break
    assert seen == [f"a{i}" for i in range(119, -1, -1) if i % 7 == 0]
    assert records.page("t", 2, None, lambda record: record.adapter_id == "a0", most=60)[0] == []


def test_records_and_pages_are_read_without_their_examples(records: Records, redis_client: "redis.Redis") -> None:
    """Count the bytes sent: a support set may have millions of bytes, and a page may have 200 records."""
    large = RECIPE.model_copy(update={"support": tuple((f"{i} {'x' * 2_000}", f"label {i % 3}") for i in range(500))})
    for i in range(10):
        records.accept("t", f"a{i}", large, DAY, ())
    sent = int(redis_client.info("stats")["total_net_output_bytes"])
    page, _ = records.page("t", 10, None)
    first = records.get("t", "a0")
    assert int(redis_client.info("stats")["total_net_output_bytes"]) - sent < 50_000
    assert first is not None and len(page) == 10 and page[-1] == first
    assert (first.summary.examples, first.summary.labels) == (500, ("label 0", "label 1", "label 2"))
    redis_client.hdel("qs:t:adapter:a0", "summary")  # as in records from versions without summaries
    assert records.get("t", "a0") == first and records.page("t", 10, None)[0] == page
    assert records.recipe("t", "a0") == large and records.recipe("t", "never") is None


def test_records_survive_a_killed_server(redis_server: RedisServer) -> None:
    client = redis.Redis.from_url(redis_server.url)
    client.config_set("appendfsync", "always")
    Records(client).accept("t", "a1", RECIPE, DAY, ())
    redis_server.stop()
    redis_server.start()
    record = Records(client).get("t", "a1")
    assert record is not None and record.summary == RECIPE.summary and Records(client).recipe("t", "a1") == RECIPE
    client.close()
