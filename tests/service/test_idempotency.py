"""Idempotency keys on a real Redis server."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from service.adapting.idempotency import IdempotencyKeys
from service.errors import IdempotencyKeyReused

SECRET = b"s" * 32


def test_a_key_belongs_to_the_first_request_that_was_accepted(redis_client: "redis.Redis") -> None:
    keys = IdempotencyKeys(redis_client)
    assert keys.find(SECRET, "t", "key", "one") is None
    assert keys.find(SECRET, "t", "key", "two") is None  # a lookup does not claim the key
    keys.keep(SECRET, "t", "key", "two", "a2")
    keys.keep(SECRET, "t", "key", "two", "another adapter")
    assert keys.find(SECRET, "t", "key", "two") == "a2" and keys.find(SECRET, "u", "key", "one") is None
    with pytest.raises(IdempotencyKeyReused):
        keys.find(SECRET, "t", "key", "one")
    with pytest.raises(IdempotencyKeyReused):
        keys.keep(SECRET, "t", "key", "one", "a1")
    assert all(0 < redis_client.ttl(name) <= 24 * 3600 for name in redis_client.scan_iter("qs:*"))


def test_of_concurrent_requests_with_one_key_exactly_one_is_accepted(redis_client: "redis.Redis") -> None:
    keys = IdempotencyKeys(redis_client)

    def keep(number: int) -> bool:
        try:
            keys.keep(SECRET, "t", "key", f"request {number}", f"a{number}")
        except IdempotencyKeyReused:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(keep, range(40))) == 1
