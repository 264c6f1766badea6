"""The record's life against a real server."""

import time
from typing import Any, cast

import pytest
import redis

from tests.conftest import RedisServer
from worker.app import KEY_PREFIX, celery_app, oldest_wake_up
from worker.errors import AdapterExpired, WeightsCorrupt, WeightsMissing
from worker.ledger.messages import ADAPT_TASK, DONE_CHANNEL, FIRST, IN_TURN, JobRecipe, Outcome, wake_up
from worker.ledger.notes import Notes
from worker.ledger.records import Claim, Record, Records, adapter_id
from worker.ledger.store import WeightStore, weights_digest

RECIPE = JobRecipe(
    initialization="default",
    initialization_digest="d" * 64,
    support=(("a", "x"), ("b", "y")),
    steps=5,
    seed=0,
    precision="float32",
)
DAY = 86_400_000


@pytest.fixture
def records(redis_client: "redis.Redis") -> Records:
    return Records(redis_client)


def claim(records: Records, identity: str = "a1", *, lease_ms: int = 10_000, attempts: int = 3) -> Claim | None:
    return records.claim("t", identity, lease_ms=lease_ms, attempts=attempts, worker="w")


def claimed(records: Records, identity: str = "a1", *, lease_ms: int = 10_000) -> Claim:
    found = claim(records, identity, lease_ms=lease_ms)
    assert found is not None
    return found


def test_the_same_id_is_one_job_until_it_has_failed_or_expired(records: Records) -> None:
    assert records.accept("t", "a1", RECIPE, DAY, (1,)) == (True, "queued")
    assert records.accept("t", "a1", RECIPE, DAY, (1,)) == (False, "queued")
    first = claimed(records)
    assert first.recipe == RECIPE
    assert records.accept("t", "a1", RECIPE, DAY, ()) == (False, "running")
    assert claim(records) is None
    assert records.commit(first, Outcome(status="failed", error="because"))
    record = records.get("t", "a1")
    assert record is not None and (record.status, record.error, record.truncated) == ("failed", "because", (1,))
    assert records.accept("t", "a1", RECIPE, DAY, ()) == (True, "queued")
    assert records.commit(
        claimed(records), Outcome(status="ready", digest="f", timings={"inner_loop": 1.5}, support_loss=(2.0, 1.0))
    )
    assert records.accept("t", "a1", RECIPE, DAY, ()) == (False, "ready")
    record = records.get("t", "a1")
    assert record is not None and record.attempt == 1 and record.error is None
    assert (record.digest, record.timings, record.support_loss) == ("f", {"inner_loop": 1.5}, (2.0, 1.0))
    assert records.accept("t", "a1", RECIPE, 1, ()) == (False, "ready")  # now it expires at once
    time.sleep(0.01)
    record = records.get("t", "a1")
    assert record is not None and record.status == "expired"
    assert records.accept("t", "a1", RECIPE, DAY, ()) == (True, "queued")


def test_a_lost_lease_goes_to_another_and_the_fence_refuses_the_first(records: Records) -> None:
    records.accept("t", "a1", RECIPE, DAY, ())
    stale = claimed(records, lease_ms=20)
    assert claim(records) is None
    time.sleep(0.03)
    fresh = claimed(records)
    assert fresh.fence > stale.fence
    assert not records.heartbeat(stale, 10_000, [1.0])
    assert not records.commit(stale, Outcome(status="ready", digest="stale"))
    record = records.get("t", "a1")
    assert record is not None and record.status == "running" and record.support_loss == ()
    assert records.heartbeat(fresh, 10_000, [3.0])
    assert records.commit(fresh, Outcome(status="ready", digest="fresh"))
    assert not records.commit(fresh, Outcome(status="failed", error="twice"))
    record = records.get("t", "a1")
    assert record is not None and record.digest == "fresh" and record.attempt == 2


def test_a_worker_of_before_a_deletion_cannot_commit_after_it(records: Records) -> None:
    records.accept("t", "a1", RECIPE, DAY, ())
    before = claimed(records)
    assert records.delete("t", "a1") == before.fence
    assert records.get("t", "a1") is None
    assert not records.commit(before, Outcome(status="ready", digest="old"))
    records.accept("t", "a1", RECIPE, DAY, ())
    assert claimed(records).fence > before.fence
    assert not records.commit(before, Outcome(status="ready", digest="old"))
    assert records.delete("t", "never") is None


def test_a_job_that_costs_every_worker_ends_as_failed(records: Records) -> None:
    records.accept("t", "a1", RECIPE, DAY, ())
    for _ in range(2):
        claimed(records, lease_ms=1)
        time.sleep(0.005)
    assert claim(records, attempts=2) is None
    record = records.get("t", "a1")
    assert record is not None and record.status == "failed" and "2 attempts" in str(record.error)
    assert records.due() == []


def test_a_commit_said_twice_is_one(records: Records) -> None:
    """The answer to the first was lost."""
    records.accept("t", "a1", RECIPE, DAY, ())
    only = claimed(records)
    ready = Outcome(status="ready", digest="f")
    assert records.commit(only, ready) is not None and records.commit(only, ready) is not None
    assert records.commit(only, Outcome(status="ready", digest="other")) is None
    counts = records.counts()
    assert counts["ready"] == 1 and counts["refused_commits"] == 1


def test_without_memory_jobs_still_end_and_can_be_deleted(redis_server: RedisServer) -> None:
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
    assert records.heartbeat(first, 10_000) and records.commit(first, Outcome(status="failed", error="because"))
    assert records.hand_back(second, "because", delay_ms=0, counts=True)
    assert claim(records, "a2", attempts=1) is None and [dead.adapter_id for dead in records.dead()] == ["a2"]
    third = claimed(records, "a3")
    assert records.delete("t", "a3") == third.fence and records.get("t", "a3") is None
    assert records.pin("t", "a4", False) == DAY and records.revive("t", "a2")
    client.close()


def test_records_are_removed_only_as_what_they_still_are(records: Records) -> None:
    records.accept("t", "a1", RECIPE, DAY, ())
    assert records.delete("t", "a1", only="dead") is None and records.delete("t", "a1", only="over") is None
    old = claimed(records, lease_ms=1)
    time.sleep(0.005)
    assert claim(records, attempts=1) is None
    assert records.accept("t", "a1", RECIPE, DAY, ()) == (True, "queued")  # asked for again: neither dead nor at its end
    assert records.delete("t", "a1", only="dead") is None
    keys = ["qs:t:adapter:a1", "qs:pending", "qs:running", "qs:counts", "qs:dead"]
    records._give_up(keys=keys, args=["t/a1", DONE_CHANNEL, "decided before it was asked for again", 1])
    again = claimed(records)
    assert again.before == old.fence  # whose weights, if any, are still to be removed
    assert records.commit(again, Outcome(status="ready", digest="f"))


def test_a_dead_job_that_is_retried_has_its_time_again(records: Records) -> None:
    records.accept("t", "a1", RECIPE, 300, ())
    claimed(records, lease_ms=1)
    time.sleep(0.31)
    assert claim(records, attempts=1) is None and records.revive("t", "a1")
    records.accept("t", "a2", RECIPE, DAY, ())
    assert records.due(oldest={"": ("t", "a2")}) == [("t", "a1", "")]  # at once, whatever else waits
    records.commit(claimed(records), Outcome(status="ready", digest="f"))
    record = records.get("t", "a1")
    assert record is not None and record.status == "ready"


def test_what_happens_is_counted(records: Records) -> None:
    assert records.counts() == {"now_queued": 0, "now_running": 0}
    for identity in ("a1", "a2", "a3"):
        records.accept("t", identity, RECIPE, DAY, ())
    stale = claimed(records, "a1", lease_ms=1)
    time.sleep(0.005)
    fresh = claimed(records, "a1")
    assert not records.heartbeat(stale, 1000) and not records.commit(stale, Outcome(status="ready", digest="f"))
    assert records.commit(fresh, Outcome(status="ready", digest="f"))
    assert records.commit(claimed(records, "a2"), Outcome(status="failed", error="because"))
    claimed(records, "a3")
    ready = records.get("t", "a1")
    assert ready is not None and records.requeue(ready, "corrupt")
    counts = records.counts()
    assert 0 <= counts.pop("recovery_ms") < 1000
    assert {counts.pop(name) for name in list(counts) if name.startswith("recovery_le_")} == {1}
    assert counts == {
        "accepted": 3,
        "attempts": 4,
        "lost_workers": 1,
        "recoveries": 1,
        "overtaken": 1,
        "refused_commits": 1,
        "ready": 1,
        "failed": 1,
        "recomputed": 1,
        "corrupt": 1,
        "now_queued": 1,
        "now_running": 1,
    }
    for identity in ("a1", "a2", "a3"):
        records.delete("t", identity)
    assert {name: n for name, n in records.counts().items() if name.startswith("now_")} == {"now_queued": 0, "now_running": 0}


def test_a_job_handed_back_waits_for_another_worker(records: Records) -> None:
    records.accept("t", "a1", RECIPE, DAY, ())
    first = claimed(records)
    assert records.hand_back(first, "because", delay_ms=0, counts=True)
    assert not records.hand_back(first, "twice", delay_ms=0, counts=True)
    assert not records.heartbeat(first, 1000) and not records.commit(first, Outcome(status="ready", digest="f"))
    record = records.get("t", "a1")
    assert record is not None and (record.status, record.attempt, record.last_error) == ("queued", 1, "because")
    assert records.due() == [("t", "a1", "")]
    second = claimed(records)
    assert records.hand_back(second, "again", delay_ms=0, counts=False)
    third = claimed(records)
    assert third.attempt == 2 and records.commit(third, Outcome(status="ready", digest="f"))
    record = records.get("t", "a1")
    assert record is not None and record.last_error is None and record.attempt == 2


def test_dead_jobs_wait_for_somebody_to_look(records: Records) -> None:
    for identity in ("a1", "a2"):
        records.accept("t", identity, RECIPE, DAY, ())
        claimed(records, identity, lease_ms=1)
        time.sleep(0.005)
        assert claim(records, identity, attempts=1) is None
    assert [dead.adapter_id for dead in records.dead()] == ["a2", "a1"]
    assert records.accept("t", "a1", RECIPE, DAY, ()) == (True, "queued")  # asked for again: not dead any more
    assert [dead.adapter_id for dead in records.dead()] == ["a2"]
    assert records.revive("t", "a2") and not records.revive("t", "a1")
    record = records.get("t", "a2")
    assert record is not None and (record.status, record.attempt, record.error) == ("queued", 0, None)
    claimed(records, "a2", lease_ms=1)
    time.sleep(0.005)
    assert claim(records, "a2", attempts=1) is None
    assert len(records.dead()) == 1
    records.delete("t", "a2")
    assert records.dead() == []


def test_a_pinned_adapter_does_not_expire(records: Records, redis_client: "redis.Redis") -> None:
    records.accept("t", "a1", RECIPE, 1, ())
    assert records.pin("t", "a1", True) == 1
    kept = records.commit(claimed(records), Outcome(status="ready", digest="f"))
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
    for pinned in (True, False):  # its bytes are given back: to have it again it must be accepted
        with pytest.raises(AdapterExpired):
            records.pin("t", "a1", pinned)
    assert records.get("t", "a1") == record and redis_client.zscore("qs:retire", "t/a1") is not None


def test_due_names_what_was_lost_once_and_only_that(records: Records, redis_client: "redis.Redis") -> None:
    records.accept("t", "a1", RECIPE, DAY, ())
    records.accept("t", "a2", RECIPE, DAY, ())
    records.accept("t", "a3", RECIPE, DAY, ())
    claimed(records, "a1", lease_ms=1)
    claimed(records, "a2", lease_ms=60_000)
    time.sleep(0.005)
    assert records.due() == [("t", "a1", "")]
    assert records.due() == []  # put off: another reaper need not repeat it
    for name in ("a4", "a3"):
        redis_client.zadd("qs:pending", {f"t/{name}": 0})  # as if it were time to look at it
    redis_client.hset("qs:t:adapter:a3", "queued_at", 5_000)
    records.accept("t", "a4", RECIPE, DAY, ())
    assert records.due(oldest={"": ("t", "a3")}) == []  # its own wake-up waits, so all later ones do
    redis_client.zadd("qs:pending", {"t/a3": 0})
    assert records.due(oldest={"": ("t", "a4")}) == [("t", "a3", "")]  # a later one waits: its own is gone
    redis_client.zadd("qs:pending", {"t/a3": 0})
    assert records.due(oldest={"": ("t", "a4")}) == []  # it has been announced since
    redis_client.zadd("qs:pending", {"t/a3": 0})
    assert records.due(oldest={"": ("t", "deleted")}) == []
    redis_client.zadd("qs:pending", {"t/a3": 0})
    assert records.due() == [("t", "a3", "")]  # no wake-up waits


def test_each_queue_has_wake_ups_of_its_own(records: Records, redis_client: "redis.Redis") -> None:
    for name, queue in (("a1", "q"), ("a2", "r"), ("a3", "q")):
        records.accept("t", name, RECIPE, DAY, (), queue=queue)
        redis_client.zadd("qs:pending", {f"t/{name}": 0})
    assert records.queues() == ["q", "r"]
    assert records.due(oldest={"q": ("t", "a1")}) == [("t", "a2", "r")]  # nothing waits in r
    record = records.get("t", "a2")
    assert record is not None and record.queue == "r"
    for number, queue in enumerate(("q", "q", "r")):
        records.announce_worker(f"w{number}", {"queue": queue}, 10)
    assert records.workers() == {"q": 2, "r": 1}
    records.retire_worker("w0")
    records.announce_worker("w1", {"queue": "r"}, 10)
    assert records.workers() == {"r": 2}
    redis_client.zadd("qs:workers", {"w1": 1})  # silent since
    assert records.workers() == {"r": 1}
    records.announce_worker("w2", {"queue": "r"}, 10)
    assert redis_client.hkeys("qs:worker-descriptions") == [b"w2"]


def test_a_fence_never_comes_again_though_a_new_master_lost_the_counter(records: Records, redis_client: "redis.Redis") -> None:
    records.accept("t", "a1", RECIPE, DAY, ())
    first = claimed(records)
    time.sleep(0.002)  # a failover takes longer than the millisecond that fences count in
    redis_client.delete("qs:fence")  # its last writes were not replicated, nor was the claim
    redis_client.hset("qs:t:adapter:a1", mapping={"status": "queued", "fence": 0})
    second = claimed(records)
    assert second.fence > first.fence
    assert not records.heartbeat(first, 10_000) and records.heartbeat(second, 10_000)


def test_a_worker_of_another_queue_takes_nothing(records: Records) -> None:
    records.accept("t", "a1", RECIPE, DAY, (), queue="q")
    assert records.claim("t", "a1", lease_ms=10_000, attempts=3, worker="w", queues={"r": ()}) is None
    assert records.waiting(RECIPE.kin, 5) == [("t", "a1")]
    claim = records.claim("t", "a1", lease_ms=10_000, attempts=3, worker="w", queues={"q": ()})
    assert claim is not None and records.waiting(RECIPE.kin, 5) == []


def test_a_record_from_before_there_were_queues_gets_one(records: Records, redis_client: "redis.Redis") -> None:
    records.accept("t", "a1", RECIPE, DAY, ())
    redis_client.hdel("qs:t:adapter:a1", "queue")
    assert records.commit(claimed(records), Outcome(status="ready", digest="f"))
    record = records.get("t", "a1")
    assert record is not None and record.queue == "" and records.requeue(record, "evicted", "q")
    assert records.claim("t", "a1", lease_ms=10_000, attempts=3, worker="w", queues={"r": ()}) is None
    assert "q" in records.queues()


def test_times_are_counted_by_stage(records: Records) -> None:
    records.observe({"queue": (4.0,), "inner_step": (1.0, 7.5)})
    records.observe({"inner_step": (60.25,)})
    counts = records.counts()
    assert (counts["stage_inner_step_count"], counts["stage_inner_step_us"], counts["stage_queue_us"]) == (3, 68_750, 4_000)
    bounds = (1, 5, 10, 50, 100)
    assert [counts.get(f"stage_inner_step_le_{bound}", 0) for bound in bounds] == [1, 1, 2, 2, 3]


def test_the_oldest_wake_up_is_read_from_the_queue_itself(redis_server: RedisServer, redis_client: "redis.Redis") -> None:
    """kombu's own format, which no contract holds still."""
    app = celery_app(redis_server.url, "q")
    assert oldest_wake_up(redis_client, "q") is None
    for name, priority in (("lost", FIRST), ("a1", IN_TURN), ("a2", IN_TURN)):
        app.send_task(ADAPT_TASK, kwargs=wake_up("t", name), priority=priority)
    assert oldest_wake_up(redis_client, "q") == ("t", "a1")
    redis_client.delete(f"{KEY_PREFIX}q\x06\x16{IN_TURN}")
    assert oldest_wake_up(redis_client, "q") == ("t", "lost")
    app.close()


def test_a_ready_job_is_started_again_once_and_only_if_it_is_that_one(records: Records) -> None:
    records.accept("t", "a1", RECIPE, DAY, ())
    records.commit(claimed(records), Outcome(status="ready", digest="f"))
    ready = records.get("t", "a1")
    assert ready is not None and not ready.readapting
    assert records.requeue(ready, "evicted")
    again = records.get("t", "a1")
    assert again is not None and again.readapting and again.status == "queued" and again.expires_at == ready.expires_at
    assert not records.requeue(ready, "evicted")
    records.commit(claimed(records), Outcome(status="ready", digest="f"))
    assert not records.requeue(ready, "evicted")  # somebody else's is there already
    done = records.get("t", "a1")
    assert done is not None and done.status == "ready" and not done.readapting
    records.delete("t", "a1")
    assert not records.requeue(done, "evicted") and records.get("t", "a1") is None  # deleted stays deleted


def test_no_record_can_be_evicted_and_old_ones_are_retired(records: Records, redis_client: "redis.Redis") -> None:
    records.accept("t", "a1", RECIPE, DAY, ())
    records.accept("t", "a2", RECIPE, DAY, ())
    assert all(redis_client.ttl(key) == -1 for key in redis_client.scan_iter("qs:*"))
    assert records.retire() == []
    redis_client.zadd("qs:retire", {"t/a1": 1})
    assert records.retire() == [("t", "a1", 0)]
    assert records.get("t", "a1") is None and records.get("t", "a2") is not None
    assert [record.adapter_id for record in records.page("t", 10, None)[0]] == ["a2"]


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


def test_a_page_of_few_that_are_wanted_goes_through_many_and_misses_none(records: Records) -> None:
    for i in range(120):
        records.accept("t", f"a{i}", RECIPE, DAY, (), notes=Notes(name="it" if i % 7 == 0 else "other"))

    def wanted(record: Record) -> bool:
        looked.append(record.adapter_id)
        return record.name == "it"

    seen: list[str] = []
    cursor: int | None = None
    for _ in range(30):
        looked: list[str] = []
        page, cursor = records.page("t", 2, cursor, wanted, most=60)
        seen += [record.adapter_id for record in page]
        assert len(page) <= 2 and len(looked) <= 60
        if cursor is None:
            break
    assert seen == [f"a{i}" for i in range(119, -1, -1) if i % 7 == 0]
    assert records.page("t", 2, None, lambda record: record.adapter_id == "a0", most=60)[0] == []


def test_examples_are_read_only_where_they_are_needed(records: Records, redis_client: "redis.Redis") -> None:
    """A support set may have millions of bytes, and there are pages of 200."""
    large = RECIPE.model_copy(update={"support": tuple((f"{i} {'x' * 2_000}", f"label {i % 3}") for i in range(500))})
    for i in range(10):
        records.accept("t", f"a{i}", large, DAY, ())
    sent = int(redis_client.info("stats")["total_net_output_bytes"])
    page, _ = records.page("t", 10, None)
    first = records.get("t", "a0")
    assert int(redis_client.info("stats")["total_net_output_bytes"]) - sent < 50_000
    assert first is not None and len(page) == 10 and page[-1] == first
    assert (first.summary.examples, first.summary.labels) == (500, ("label 0", "label 1", "label 2"))
    redis_client.hdel("qs:t:adapter:a0", "summary")  # as of before there were any
    assert records.get("t", "a0") == first and records.page("t", 10, None)[0] == page
    assert records.recipe("t", "a0") == large and records.recipe("t", "never") is None


def test_the_end_of_a_job_is_published(records: Records, redis_client: "redis.Redis") -> None:
    channel = cast(Any, redis_client).pubsub()
    channel.subscribe(DONE_CHANNEL)
    assert channel.get_message(timeout=2)  # the subscription's own answer
    records.accept("t", "a1", RECIPE, DAY, ())
    records.commit(claimed(records), Outcome(status="ready", digest="f"))
    message = channel.get_message(timeout=2)
    assert message is not None and message["data"] == b"t/a1"
    channel.close()


def test_records_survive_a_killed_server(redis_server: RedisServer) -> None:
    client = redis.Redis.from_url(redis_server.url)
    client.config_set("appendfsync", "always")
    Records(client).accept("t", "a1", RECIPE, DAY, ())
    redis_server.stop()
    redis_server.start()
    record = Records(client).get("t", "a1")
    assert record is not None and record.summary == RECIPE.summary and Records(client).recipe("t", "a1") == RECIPE
    client.close()


def test_ids_depend_on_what_determines_the_weights_and_on_nothing_else(records: Records) -> None:
    key = records.id_key()
    assert key == records.id_key() and len(key) == 32
    base = adapter_id(key, "t", RECIPE)
    assert base == adapter_id(key, "t", RECIPE.model_copy(update={"initialization": "another name of the same digest"}))
    for change in (
        {"support": (("a ", "x"), ("b", "y"))},  # one space
        {"support": (("a", "x"), ("b", "y"), ("b", "y"))},
        {"support": (("a", "y"), ("b", "x"))},
        {"steps": 6},
        {"seed": 1},
        {"label_words": True},
        {"precision": "auto"},
        {"initialization_digest": "e" * 64},
    ):
        assert adapter_id(key, "t", RECIPE.model_copy(update=change)) != base, change
    assert adapter_id(key, "other", RECIPE) != base
    assert adapter_id(b"another key", "t", RECIPE) != base


def test_weights_are_checked_on_the_way_out(redis_client: "redis.Redis") -> None:
    store = WeightStore(redis_client)
    store.put("t", "a1", 7, b"weights", DAY)
    assert store.get("t", "a1", 7, weights_digest(b"weights")) == b"weights"
    assert store.has("t", "a1", 7) and store.keep("t", "a1", 7, DAY)
    for tenant, fence in (("t", 8), ("other", 7)):
        with pytest.raises(WeightsMissing):
            store.get(tenant, "a1", fence, weights_digest(b"weights"))
    redis_client.set("qs:t:weights:a1:7", b"weightz", keepttl=True)
    with pytest.raises(WeightsCorrupt):
        store.get("t", "a1", 7, weights_digest(b"weights"))
    assert not store.has("t", "a1", 7)
    assert all(redis_client.ttl(key) > 0 for key in redis_client.scan_iter("qs:*:weights:*"))
