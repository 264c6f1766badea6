"""Tenants take turns: which job a claim gives out, on a real Redis server."""

import random
import time
from collections import Counter
from typing import cast

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.worker.ledger.jobs import DAY, RECIPE, claimed
from worker.ledger.claims import Claim, Claimant
from worker.ledger.messages import Outcome
from worker.ledger.records import Records
from worker.ledger.tenants import Tenants

QUEUE = "q"
WORKER = Claimant("w", queues={QUEUE: ()})


def accept(records: Records, job: str, *, cost: int = 1, queue: str = QUEUE) -> None:
    tenant, identity = job.split("/")
    records.accept(tenant, identity, RECIPE, DAY, (), queue=queue, cost=cost)


def claim(records: Records, named: str) -> Claim:
    """Claim exactly this job. Fail if it cannot be claimed."""
    tenant, identity = named.split("/")
    claim = records.claims.claim(tenant, identity, WORKER)
    assert claim is not None
    return claim


def in_turn(records: Records, named: str, claimant: Claimant = WORKER) -> str | None:
    """Claim the next job after a wake-up for `named`, and return its name."""
    tenant, identity = named.split("/")
    claim = records.claims.claim_in_turn(tenant, identity, claimant)
    return None if claim is None else f"{claim.tenant}/{claim.adapter_id}"


def test_a_job_of_a_quiet_tenant_is_next_however_many_jobs_of_another_wait(records: Records) -> None:
    for number in range(50):
        accept(records, f"busy/a{number:02}")
    assert in_turn(records, "busy/a00") == "busy/a00"
    accept(records, "quiet/b")
    assert in_turn(records, "busy/a01") == "quiet/b"
    assert [in_turn(records, f"busy/a{n:02}") for n in (2, 3)] == ["busy/a01", "busy/a02"]  # its own jobs keep their order
    for n in range(4, 50):
        assert in_turn(records, f"busy/a{n:02}") is not None
    assert in_turn(records, "quiet/b") == "busy/a49"  # the wake-up of b takes the job whose wake-up b used
    assert in_turn(records, "busy/a49") is None


def test_turns_are_weighted_by_cost(records: Records) -> None:
    for number in range(40):
        accept(records, f"large/a{number:02}", cost=300)
        accept(records, f"small/b{number:02}", cost=100)
    first = Counter(str(in_turn(records, "small/b00")).split("/")[0] for _ in range(40))
    assert first["small"] in (29, 30, 31)  # three small jobs cost as much as a large one


def test_a_tenant_with_a_share_of_three_gets_three_times_as_much(records: Records, redis_client: "redis.Redis") -> None:
    Tenants(redis_client).change("large", {}, share=3)
    for number in range(40):
        accept(records, f"large/a{number:02}", cost=10)
        accept(records, f"small/b{number:02}", cost=10)
    first = Counter(str(in_turn(records, "small/b00")).split("/")[0] for _ in range(40))
    assert first["large"] in (29, 30, 31)


def test_a_tenant_does_not_save_up_turns_while_it_has_no_jobs(records: Records) -> None:
    accept(records, "early/a")
    assert in_turn(records, "early/a") == "early/a"
    for number in range(20):
        accept(records, f"busy/b{number:02}")
        assert in_turn(records, f"busy/b{number:02}") == f"busy/b{number:02}"
    for number in range(6):
        accept(records, f"early/c{number}")
        accept(records, f"busy/d{number}")
    order = [str(in_turn(records, "early/c0")).split("/")[0] for _ in range(6)]
    assert order.count("early") in (3, 4)


def test_a_lost_job_comes_first_of_its_tenant_and_its_attempts_are_turns_of_its_tenant(records: Records) -> None:
    for job in ("t/lost", "t/a", "t/b", "zoe/c", "zoe/d"):
        accept(records, job)
        time.sleep(0.002)  # so that each has a later time
    dead = Claimant("dead", lease_ms=-1, queues={QUEUE: ()})
    assert in_turn(records, "t/lost", dead) == "t/lost"
    assert in_turn(records, "t/a", dead) == "zoe/c"  # it is the turn of another tenant
    assert in_turn(records, "t/a", dead) == "t/lost"  # whichever job the wake-up names
    assert [in_turn(records, "t/lost") for _ in range(5)] == ["zoe/c", "t/lost", "zoe/d", "t/a", "t/b"]
    assert in_turn(records, "t/lost") is None


def test_a_lost_job_that_turns_out_to_be_alive_is_not_given_out(records: Records) -> None:
    accept(records, "t/slow")
    paused = records.claims.claim("t", "slow", Claimant("w", lease_ms=-1, queues={"other": (), QUEUE: ()}))
    assert paused is not None and in_turn(records, "t/slow", Claimant("v", queues={"other": ()})) is None  # it now waits again
    assert records.claims.heartbeat(paused, 10_000)
    assert in_turn(records, "t/slow") is None


def test_a_job_of_an_earlier_version_has_no_turn_and_comes_first(records: Records, redis_client: "redis.Redis") -> None:
    for job in ("busy/a1", "busy/a2", "t/early"):
        accept(records, job)
    redis_client.zrem("qs:waiting_in:t:q", "t/early")  # earlier versions write no turns
    assert in_turn(records, "t/early") == "t/early"
    assert in_turn(records, "t/early") == "busy/a1"


def test_a_lost_job_of_another_queue_or_without_attempts_left_holds_up_nothing(records: Records) -> None:
    dead = Claimant("dead", lease_ms=-1, attempts=1, queues={QUEUE: (), "other": ()})
    for job in ("t/lost", "t/a"):
        accept(records, job)
        time.sleep(0.002)
    accept(records, "t/elsewhere", queue="other")
    for lost in ("lost", "elsewhere"):
        assert records.claims.claim("t", lost, dead) is not None
    assert in_turn(records, "t/a", Claimant("w", attempts=1, queues={QUEUE: ()})) == "t/a"
    record = records.get("t", "lost")
    assert record is not None and record.status == "failed" and "the last one stopped answering" in str(record.error)
    assert in_turn(records, "t/a", Claimant("w", queues={"other": ()})) == "t/elsewhere"


def test_jobs_that_no_longer_wait_are_passed_over(records: Records, redis_client: "redis.Redis") -> None:
    for job in ("t/deleted", "t/taken", "t/dropped", "t/stays"):
        accept(records, job)
    records.delete("t", "deleted")
    assert set(redis_client.zrange("qs:waiting_in:t:q", 0, -1)) == {b"t/dropped", b"t/stays", b"t/taken"}
    redis_client.hset("qs:t:adapter:taken", mapping={"status": "running", "lease_until": 9e15})  # by an earlier version's worker
    redis_client.delete("qs:t:adapter:dropped")  # by an earlier version's service
    assert in_turn(records, "t/deleted") == "t/stays"
    assert in_turn(records, "t/deleted") is None and redis_client.zcard("qs:waiting_in:t:q") == 0


def test_a_handed_back_job_gets_its_next_turn_after_the_delay(records: Records, redis_client: "redis.Redis") -> None:
    accept(records, "t/a")
    first = claim(records, "t/a")
    records.claims.hand_back(first, "because", delay_ms=60_000, is_attempt=True)
    accept(records, "t/b")
    assert in_turn(records, "t/b") == "t/b"
    now_ms = 1000 * redis_client.time()[0]
    assert cast(float, redis_client.zscore("qs:waiting_in:t:q", "t/a")) > now_ms + 50_000
    redis_client.zadd("qs:waiting_in:t:q", {"t/a": 0})
    assert in_turn(records, "t/b") == "t/a"


def test_a_job_that_lost_its_worker_gets_back_its_place_among_the_jobs_of_its_tenant(records: Records) -> None:
    names = [f"t/a{number}" for number in range(6)]
    for job in names[:4]:
        accept(records, job)
        time.sleep(0.002)  # so that each has a later time
    hung, unlucky = claim(records, names[0]), claim(records, names[1])
    for job in names[4:]:
        accept(records, job)
    records.claims.hand_back(hung, "its worker hung", delay_ms=0, is_attempt=True)
    records.claims.hand_back(unlucky, "the cache is full", delay_ms=50, is_attempt=False)
    assert in_turn(records, names[5]) == names[0]
    assert in_turn(records, names[5]) == names[2]  # the delay is not over
    time.sleep(0.06)
    assert records.waiting.due() == [("t", "a1", QUEUE)]  # as a reaper asks each second
    assert [in_turn(records, names[5]) for _ in range(4)] == [names[1], *names[3:]]


def test_jobs_in_turn_that_used_up_their_attempts_end_and_the_next_one_is_claimed(records: Records) -> None:
    for job in ("t/a", "t/b"):
        accept(records, job)
    first = claim(records, "t/a")
    records.claims.hand_back(first, "because", delay_ms=0, is_attempt=True)
    assert in_turn(records, "t/b", Claimant("w", attempts=1, queues={QUEUE: ()})) == "t/b"
    assert in_turn(records, "t/b", Claimant("w", attempts=1, queues={QUEUE: ()})) is None
    record = records.get("t", "a")
    assert record is not None and record.status == "failed" and "1 attempt; the last one ended with: because" in str(record.error)


def test_a_wake_up_of_one_queue_is_not_wasted_if_only_another_has_jobs(records: Records) -> None:
    accept(records, "t/a", queue="q")
    accept(records, "t/b", queue="r")
    both = Claimant("w", queues={"q": (), "r": ()})
    assert [in_turn(records, "t/a", both) for _ in range(3)] == ["t/a", "t/b", None]


def test_the_jobs_of_a_pass_are_taken_in_turn_and_have_one_pass_key(records: Records) -> None:
    other = RECIPE.model_copy(update={"steps": 7})
    for number in range(8):
        accept(records, f"busy/a{number}")
    records.accept("quiet", "b", RECIPE, DAY, (), queue=QUEUE)
    records.accept("quiet", "c", other, DAY, (), queue=QUEUE)
    first = records.claims.claim_in_turn("busy", "a0", WORKER)
    assert first is not None and (first.tenant, first.adapter_id) == ("busy", "a0")
    companions: list[Claim | None] = [records.claims.claim_for_pass(first, WORKER) for _ in range(9)]
    names = [claim and f"{claim.tenant}/{claim.adapter_id}" for claim in companions]
    assert names == ["quiet/b", *(f"busy/a{n}" for n in range(1, 8)), None]
    assert in_turn(records, "busy/a0") == "quiet/c"


def test_what_was_served_while_nobody_waited_is_not_paid_for_later(records: Records, redis_client: "redis.Redis") -> None:
    accept(records, "early/a", cost=1_000_000)
    assert in_turn(records, "early/a") == "early/a"
    for number in range(30):
        accept(records, f"busy/b{number:02}", cost=1000)
    accept(records, "early/c")
    assert "early/c" in [in_turn(records, "busy/b00") for _ in range(2)]
    for number in range(29):
        assert in_turn(records, f"busy/b{number:02}") is not None
    assert redis_client.keys("qs:turns_in:*") == redis_client.keys("qs:turns_idle:*") == []


def test_jobs_that_a_worker_must_leave_alone_hide_no_other_job_of_their_tenant(records: Records) -> None:
    unknown = RECIPE.model_copy(update={"initialization_digest": "unknown"})
    known = Claimant("w", queues={QUEUE: [RECIPE.initialization_digest]})
    for number in range(70):
        records.accept("t", f"a{number:02}", unknown, DAY, (), queue=QUEUE)
    accept(records, "t/good")
    for number in range(5):
        accept(records, f"busy/b{number}")
    assert "t/good" in [in_turn(records, "t/good", known) for _ in range(2)]
    assert in_turn(records, "t/a00", known) == "busy/b1"


def test_a_stray_wake_up_does_not_shorten_the_delay_of_a_handed_back_job(records: Records) -> None:
    accept(records, "t/a")
    records.claims.hand_back(claim(records, "t/a"), "because", delay_ms=60_000, is_attempt=True)
    assert in_turn(records, "t/a") is None
    record = records.get("t", "a")
    assert record is not None and record.attempt == 1


def test_a_pass_looks_at_a_bounded_number_of_jobs_and_finds_those_of_its_own_tenant(
    records: Records, redis_client: "redis.Redis"
) -> None:
    other = RECIPE.model_copy(update={"steps": 7})
    for job in ("late/a", "late/b"):
        accept(records, job, cost=1000)
    for tenant in range(6):
        for number in range(64):
            records.accept(f"t{tenant}", f"c{number:02}", other, DAY, (), queue=QUEUE)
    first = claim(records, "late/a")
    before = redis_client.info("commandstats")["cmdstat_hmget"]["calls"]
    companion = records.claims.claim_for_pass(first, WORKER)
    assert companion is not None and (companion.tenant, companion.adapter_id) == ("late", "b")
    assert redis_client.info("commandstats")["cmdstat_hmget"]["calls"] - before < 350


@pytest.mark.parametrize("cost", ["inf", "-1e9", "nan", "abc", "0"])
def test_a_cost_that_is_no_number_of_tokens_counts_as_one_within_bounds(
    records: Records, redis_client: "redis.Redis", cost: str
) -> None:
    for job in ("t/a", "t/b", "u/c"):
        accept(records, job)
    redis_client.hset("qs:t:adapter:a", "cost", cost)
    assert [in_turn(records, "t/a") for _ in range(4)] in (["t/a", "u/c", "t/b", None], ["t/a", "t/b", "u/c", None])
    assert 0 < float(cast(bytes, redis_client.get("qs:turn_time:q"))) < 2e12


def test_a_job_that_is_queued_again_waits_for_its_turn(records: Records) -> None:
    accept(records, "t/a")
    assert records.claims.commit(claim(records, "t/a"), Outcome(status="ready", digest="f")) is not None
    record = records.get("t", "a")
    assert record is not None and records.requeue(record, "evicted")
    accept(records, "t/b")
    assert in_turn(records, "t/b") == "t/a"
    records.accept("t", "old", RECIPE, DAY, ())
    claimed(records, "old", lease_ms=-1)
    assert records.claims.claim("t", "old", Claimant("w", attempts=1)) is None  # dead now
    assert records.dead_jobs.revive("t", "old") and in_turn(records, "t/old", Claimant("w")) == "t/old"


@pytest.mark.parametrize("tenants", [3])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000))
def test_no_tenant_gets_ahead_of_another_by_more_than_two_jobs(
    records: Records, redis_client: "redis.Redis", tenants: int, seed: int
) -> None:
    """Check the bound of start-time fair queueing (theorem 1 of the paper).

    The costs of the jobs that two tenants got while both had waiting jobs differ by at most the sum of their largest costs.
    """
    redis_client.flushall()
    rng = random.Random(seed)
    largest = [rng.choice([1, 5, 40]) for _ in range(tenants)]
    costs = {f"t{i}/a{n}": rng.randint(1, largest[i]) for i in range(tenants) for n in range(25)}
    for job, cost in rng.sample(sorted(costs.items()), len(costs)):
        accept(records, job, cost=cost)
    left, received = Counter(job.split("/")[0] for job in costs), Counter[str]()
    while all(left[f"t{i}"] for i in range(tenants)):
        job = str(in_turn(records, "t0/a0"))
        tenant = job.split("/")[0]
        left[tenant], received[tenant] = left[tenant] - 1, received[tenant] + costs[job]
        for i in range(tenants):
            for j in range(i):
                assert abs(received[f"t{i}"] - received[f"t{j}"]) <= largest[i] + largest[j]
