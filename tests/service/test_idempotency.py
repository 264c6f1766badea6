"""Idempotency keys of a real service on a real Redis server."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import redis

from metatrain.models.base import Base
from service.adapting.idempotency import idempotency_key
from tests.conftest import RedisServer
from tests.service.workerless import BODY, running
from tests.worker.ledger.jobs import RECIPE
from worker.errors import KeyUsed, LimitReached
from worker.ledger import names
from worker.ledger.idempotency import KEPT_MS
from worker.ledger.records import Records

SECRET = b"s" * 32
AT_ONCE = 16


def accept(records: Records, adapter_id: str, request: str, **options: Any) -> None:
    key = idempotency_key(SECRET, "key", request)
    records.accept("t", adapter_id, RECIPE, KEPT_MS, (), idempotency=key, **options)


def at_once(services: Sequence[httpx.Client], key: str, bodies: Sequence[dict[str, Any]]) -> list[httpx.Response]:
    """Send one request for each body, with the same key, all at the same moment."""
    barrier = threading.Barrier(len(bodies))

    def send(number: int) -> httpx.Response:
        barrier.wait()
        return services[number % len(services)].post("/adapt", json=bodies[number], headers={"Idempotency-Key": key})

    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(send, range(len(bodies))))


def test_of_requests_with_one_key_at_the_same_moment_one_is_accepted(tiny: Base, redis_server: RedisServer) -> None:
    """Send equal and different requests to two services on an empty server, several times."""
    with running(tiny, redis_server) as first, running(tiny, redis_server) as second:
        for number in range(4):
            body = {**BODY, "options": {"steps": 0, "seed": number}}
            answers = at_once([first, second], f"equal {number}", [body] * AT_ONCE)
            assert {answer.status_code for answer in answers} == {202}
            assert len({answer.json()["adapter_id"] for answer in answers}) == 1
            assert len(first.get("/adapters").json()["adapters"]) == 2 * number + 1
            different = [{**BODY, "options": {"steps": 0, "seed": 100 + AT_ONCE * number + n}} for n in range(AT_ONCE)]
            answers = at_once([first, second], f"different {number}", different)
            assert sorted(answer.status_code for answer in answers) == [202] + [422] * (AT_ONCE - 1)
            assert len(first.get("/adapters").json()["adapters"]) == 2 * number + 2  # the refused ones wrote no job


def test_a_key_belongs_to_the_first_request_that_was_accepted(redis_client: "redis.Redis") -> None:
    records = Records(redis_client)
    records.accept("t", "a0", RECIPE, KEPT_MS, ())
    with pytest.raises(LimitReached):
        accept(records, "a1", "one", limits={"MAX_JOBS": 1})
    accept(records, "a2", "two")  # the refused request did not use up the key
    accept(records, "a2", "two")
    for adapter_id, request, first in (("a1", "one", None), ("a3", "two", "a2")):
        with pytest.raises(KeyUsed) as used:
            accept(records, adapter_id, request)
        assert used.value.adapter_id == first
        assert records.get("t", adapter_id) is None
    records.delete("t", "a2")
    accept(records, "a3", "two")  # its first adapter is gone
    records.accept("u", "a1", RECIPE, KEPT_MS, (), idempotency=idempotency_key(SECRET, "key", "one"))  # another tenant's key


def test_a_key_is_removed_after_a_day(redis_client: Any) -> None:
    records = Records(redis_client)
    accept(records, "a1", "one")
    ((member, over),) = redis_client.zrange(names.IDEMPOTENCY, 0, -1, withscores=True)
    assert abs(records.get("t", "a1").created_at + KEPT_MS - over) < 1000  # type: ignore[union-attr]
    assert records.expired_keys.remove() == 0
    redis_client.zadd(names.IDEMPOTENCY, {member: 1})
    accept(records, "a2", "two")  # although no reaper has removed it yet
    assert redis_client.get(member).split()[1] == b"a2"
    redis_client.zadd(names.IDEMPOTENCY, {member: 1})
    assert records.expired_keys.remove() == 1 and not redis_client.exists(member)
    assert records.expired_keys.remove() == 0


def test_a_key_of_an_earlier_version_holds(redis_client: "redis.Redis") -> None:
    """Store a key as versions did that set a TTL."""
    records, key = Records(redis_client), idempotency_key(SECRET, "key", "one")
    redis_client.set(names.idempotency("t", key.digest), f"{key.request} a1", ex=3600)
    accept(records, "a1", "one")
    with pytest.raises(KeyUsed):
        accept(records, "a2", "two")
    assert 0 < redis_client.ttl(names.idempotency("t", key.digest)) <= 3600  # and it still ends by itself
