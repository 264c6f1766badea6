"""The usage of a tenant matches its records, and limits hold for concurrent requests."""

import contextlib
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from metatrain.artifacts.adapter import Adapter, AdapterMetadata, adapter_bytes_at_most, adapter_to_bytes
from metatrain.artifacts.baselines import frozen_prototypes, lora_from_zero
from metatrain.artifacts.initialization import Initialization
from metatrain.models.base import Base
from tests.conftest import RedisServer
from tests.worker.ledger.jobs import DAY, RECIPE
from worker.errors import AdapterExpired, LimitReached
from worker.ledger.claims import Claim, Claimant
from worker.ledger.messages import Outcome
from worker.ledger.records import Records
from worker.ledger.usage import Usage, Used

ESTIMATE = 100
EXAMPLES = len(RECIPE.model_dump_json(exclude_defaults=True))


def claimed(records: Records, tenant: str, identity: str, attempts: int = 3) -> Claim | None:
    """Claim a job as a worker of the job's own queue."""
    record = records.get(tenant, identity)
    queue = "" if record is None else record.queue
    return records.claims.claim(tenant, identity, Claimant("w", 60_000, attempts, {queue: ()}))


def ready(records: Records, tenant: str, identity: str, size: int) -> None:
    """Claim a job and commit it as ready, with weights of `size` bytes."""
    claim = claimed(records, tenant, identity)
    assert claim is not None and records.claims.commit(claim, Outcome(status="ready", digest=f"d{size}", size=size))


def test_bytes_are_counted_from_acceptance_until_failure_expiry_or_deletion(redis_client: "redis.Redis") -> None:
    records, usage = Records(redis_client), Usage(redis_client)

    def used() -> tuple[int, int, int]:
        now = usage.of("t")
        return now.adapters, now.bytes, now.jobs

    records.accept("t", "a1", RECIPE, DAY, (), size=ESTIMATE)
    assert used() == (1, ESTIMATE, 1)
    ready(records, "t", "a1", 80)
    assert used() == (1, 80, 0)
    records.accept("t", "a1", RECIPE, DAY, (), size=ESTIMATE)  # no new job
    assert used() == (1, 80, 0)
    records.accept("t", "a2", RECIPE, DAY, (), size=ESTIMATE)
    failing = claimed(records, "t", "a2")
    assert failing is not None and used() == (2, 180, 1)
    assert records.claims.commit(failing, Outcome(status="failed", error="because"))
    assert used() == (2, 80, 0)  # its record stays, with its examples
    record = records.get("t", "a1")
    assert record is not None and records.requeue(record, "evicted") and used() == (2, 80, 1)  # recomputed: its bytes stay counted
    ready(records, "t", "a1", 90)
    assert used() == (2, 90, 0)
    records.accept("t", "a3", RECIPE, 20, (), size=ESTIMATE)
    time.sleep(0.03)
    assert used() == (3, 190, 1)  # a job counts until it has ended, even if its TTL has passed
    ready(records, "t", "a3", 70)
    assert used() == (3, 90, 0)  # its TTL had already passed
    records.pin("t", "a1", True)
    records.accept("t", "a1", RECIPE, 1, ())
    time.sleep(0.01)
    assert used() == (3, 90, 0)  # a pinned adapter stays counted after its TTL
    records.pin("t", "a1", False)
    time.sleep(0.01)
    assert used() == (3, 0, 0)
    records.accept("t", "a3", RECIPE, DAY, (), size=ESTIMATE)  # a new job, because it had expired
    assert used() == (3, ESTIMATE, 1)
    records.delete("t", "a3")
    records.delete("t", "a3")
    assert used() == (2, 0, 0)
    records.accept("t", "a4", RECIPE, DAY, (), size=ESTIMATE)
    assert claimed(records, "t", "a4", attempts=0) is None and used() == (3, 0, 0)  # the job is dead
    assert records.dead_jobs.revive("t", "a4") and used() == (3, ESTIMATE, 1)
    assert usage.of("t").adaptations == 5 and usage.of("u") == Used(0, 0, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("seed", range(12))
def test_usage_matches_the_records_after_random_operations(redis_client: "redis.Redis", seed: int) -> None:
    records, usage, draw = Records(redis_client), Usage(redis_client), random.Random(seed)
    names = [(tenant, f"a{n}") for tenant in ("t", "u") for n in range(4)]
    sizes: dict[tuple[str, str], int] = {}

    def accept(tenant: str, identity: str) -> None:
        if records.accept(tenant, identity, RECIPE, draw.choice((1, DAY, DAY)), (), size=ESTIMATE)[0]:
            sizes[tenant, identity] = ESTIMATE

    def end(tenant: str, identity: str) -> None:
        claim = claimed(records, tenant, identity, attempts=draw.choice((0, 3, 3, 3)))
        if claim is None:
            return
        size = draw.randrange(1, ESTIMATE)
        succeeds = draw.random() < 0.7
        outcome = Outcome(status="ready", digest=f"d{size}", size=size) if succeeds else Outcome(status="failed", error="because")
        if draw.random() < 0.2:
            records.claims.hand_back(claim, "because", delay_ms=0, is_attempt=True)
        elif records.claims.commit(claim, outcome) and succeeds:
            sizes[tenant, identity] = size
            records.claims.commit(claim, outcome)

    def requeue(tenant: str, identity: str) -> None:
        record = records.get(tenant, identity)
        if record is not None and record.status == "ready":
            records.requeue(record, "evicted")

    def pin(tenant: str, identity: str) -> None:
        with contextlib.suppress(AdapterExpired):
            records.pin(tenant, identity, draw.random() < 0.5)

    operations: list[Callable[[str, str], object]] = [
        accept,
        accept,
        end,
        end,
        end,
        requeue,
        records.dead_jobs.revive,
        records.delete,
        pin,
    ]
    for step in range(250):
        draw.choice(operations)(*draw.choice(names))
        if step % 10:
            continue
        time.sleep(0.002)
        for tenant in ("t", "u"):
            stored = {n: r for n in names if n[0] == tenant and (r := records.get(*n)) is not None}
            counted = {n: r for n, r in stored.items() if r.status in ("queued", "running", "ready")}
            unfinished = sum(r.status != "ready" for r in counted.values())
            used = usage.of(tenant)
            assert (used.adapters, used.bytes, used.jobs) == (len(stored), sum(sizes[n] for n in counted), unfinished)
            assert used.example_bytes == len(stored) * EXAMPLES


@pytest.mark.parametrize(("limit", "most"), [("MAX_ADAPTERS", 5), ("MAX_ADAPTER_BYTES", 5 * ESTIMATE + 99), ("MAX_JOBS", 5)])
def test_those_who_come_together_do_not_pass_a_limit(redis_server: RedisServer, limit: str, most: int) -> None:
    def accept(number: int) -> "tuple[bool, str] | LimitReached":
        records = Records(redis.Redis.from_url(redis_server.url))
        try:
            return records.accept("t", f"a{number}", RECIPE, DAY, (), size=ESTIMATE, limits={limit: most})
        except LimitReached as reached:
            return reached

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(accept, range(24)))
    refusals = [answer for answer in answers if isinstance(answer, LimitReached)]
    assert len(refusals) == 19
    assert {(each.limit, each.most, each.used) for each in refusals} == {(limit, most, most // 100 * 100 if most > 5 else 5)}
    records = Records(redis.Redis.from_url(redis_server.url))
    accepted = [number for number, answer in enumerate(answers) if not isinstance(answer, LimitReached)]
    first = accepted[0]
    assert records.accept("t", f"a{first}", RECIPE, DAY, (), size=ESTIMATE, limits={limit: most}) == (False, "queued")
    assert records.accept("u", f"a{first}", RECIPE, DAY, (), size=ESTIMATE, limits={limit: most}) == (True, "queued")
    assert records.counts.read()["accepted"] == 6
    assert [number for number in range(24) if records.get("t", f"a{number}") is not None] == accepted


def test_examples_count_until_their_record_is_gone(redis_client: "redis.Redis") -> None:
    records, usage = Records(redis_client), Usage(redis_client)
    limits = {"MAX_EXAMPLE_BYTES": 2 * EXAMPLES}
    for identity in ("a1", "a2"):
        records.accept("t", identity, RECIPE, DAY, (), limits=limits)
    failing = claimed(records, "t", "a1")
    assert failing is not None and records.claims.commit(failing, Outcome(status="failed", error="because"))
    assert usage.of("t").example_bytes == 2 * EXAMPLES
    with pytest.raises(LimitReached) as refused:
        records.accept("t", "a3", RECIPE, DAY, (), limits=limits)
    assert (refused.value.limit, refused.value.used) == ("MAX_EXAMPLE_BYTES", 2 * EXAMPLES) and refused.value.retry_after == 60
    assert records.accept("t", "a1", RECIPE, DAY, (), limits=limits) == (
        True,
        "queued",
    )  # it adds no example bytes
    assert records.delete("t", "a2") is not None and usage.of("t").example_bytes == EXAMPLES
    records.accept("t", "a3", RECIPE, 1, (), limits=limits)
    ready(records, "t", "a3", 1)
    redis_client.zadd("qs:retire", {"t/a3": 1})
    assert len(records.retention.retire()) == 1 and usage.of("t").example_bytes == EXAMPLES
    redis_client.hdel("qs:t:adapter:a1", "example_bytes")  # as in records from versions that did not count them
    redis_client.hset("qs:t:usage", "example_bytes", 0)
    assert records.delete("t", "a1") is not None and usage.of("t").example_bytes == 0


def test_expired_adapters_stop_counting_a_thousand_per_call_and_only_once(redis_client: "redis.Redis") -> None:
    records, usage = Records(redis_client), Usage(redis_client)
    records.accept("t", "a1", RECIPE, DAY, (), size=7)
    names = [f"e{n}" for n in range(2_500)]
    with redis_client.pipeline() as pipe:
        for name in names:
            pipe.hset(f"qs:t:adapter:{name}", "bytes", 2)
        pipe.zadd("qs:t:weighed", dict.fromkeys(names, 1))
        pipe.hincrby("qs:t:usage", "bytes", 5_000)
        pipe.execute()
    assert [usage.of("t").bytes for _ in range(2)] == [3_007, 1_007]
    with pytest.raises(LimitReached):
        records.accept("t", "a2", RECIPE, DAY, (), size=7, limits={"MAX_ADAPTER_BYTES": 13})
    assert redis_client.zcard("qs:t:weighed") == 1 and usage.of("t").bytes == 7


def test_requests_are_limited_by_the_minute_and_predictions_are_counted(redis_client: "redis.Redis") -> None:
    usage = Usage(redis_client)
    for _ in range(2):  # a new minute may begin once
        try:
            for _ in range(7):
                usage.take_requests("t", 1, 3)
        except LimitReached as reached:
            assert (reached.limit, reached.most, reached.used) == ("MAX_REQUESTS_A_MINUTE", 3, 3)
            assert 1 <= reached.retry_after <= 60
            break
    else:
        raise AssertionError("expected LimitReached: seven requests in two minutes with at most three each")
    usage.take_requests("u", 1, 3)
    usage.add_predictions("u", 5)
    usage.add_predictions("u", 2)
    assert usage.of("u").predictions == 7 and usage.of("u").requests_this_minute in (0, 1)


def test_the_estimated_size_is_an_upper_bound_of_the_size_of_the_weights(tiny: Base) -> None:
    def content(init: Initialization, labels: tuple[str, ...]) -> bytes:
        import torch

        metadata = AdapterMetadata(
            initialization_digest=init.digest,
            base_weights_sha256=tiny.spec.weights_sha256,
            delta=init.delta,
            scale=init.scale,
            labels=labels,
        )
        return adapter_to_bytes(
            Adapter(metadata, init.theta, {"head.weight": torch.zeros(len(labels), 32), "head.bias": torch.zeros(len(labels))})
        )

    for init in (lora_from_zero(tiny), frozen_prototypes(tiny)):
        for labels in (("a", "b"), ('"' * 200, "\\" * 200, "\x01" * 200, "é" * 200), tuple(f"label {n}" for n in range(200))):
            size, most = len(content(init, labels)), adapter_bytes_at_most(init, labels, tiny.hidden_size)
            assert size <= most <= size + 40_000


@pytest.mark.parametrize("seed", range(4))
def test_the_check_of_room_says_what_accept_then_does(redis_client: "redis.Redis", seed: int) -> None:
    records, draw = Records(redis_client), random.Random(seed)
    refusals = 0
    for step in range(150):
        identity, recipe = f"a{draw.randrange(8)}", RECIPE.model_copy(update={"seed": draw.choice((1, 10**9))})
        limits = {
            "MAX_ADAPTERS": draw.choice((0, 4)),
            "MAX_ADAPTER_BYTES": draw.choice((0, 0, 5 * ESTIMATE)),
            "MAX_EXAMPLE_BYTES": draw.choice((0, 0, 5 * EXAMPLES)),
            "MAX_JOBS": draw.choice((0, 0, 3)),
        }
        before = redis_client.dbsize(), redis_client.hgetall("qs:t:usage")
        expected = said = None
        try:
            records.check_room("t", identity, recipe, size=ESTIMATE, limits=limits)
        except LimitReached as reached:
            said = (reached.limit, reached.most, reached.used, reached.retry_after)
        assert (redis_client.dbsize(), redis_client.hgetall("qs:t:usage")) == before
        try:
            records.accept("t", identity, recipe, draw.choice((DAY, DAY, 3)), (), size=ESTIMATE, limits=limits)
        except LimitReached as reached:
            expected = (reached.limit, reached.most, reached.used, reached.retry_after)
        assert said == expected
        refusals += said is not None
        if step % 3 == 0:
            records.delete("t", f"a{draw.randrange(8)}")
        if step % 4 == 0 and (claim := claimed(records, "t", identity)) is not None:
            records.claims.commit(claim, Outcome(status="ready", digest="d", size=draw.randrange(1, ESTIMATE)))
        time.sleep(0.001)
    assert refusals > 10
