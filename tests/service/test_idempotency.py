"""Which request a key stands for, on a real server."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from service.adapting.idempotency import IdempotencyKeys
from service.errors import KeyUsedOtherwise

SECRET = b"s" * 32


def test_a_key_stands_for_the_first_request_that_was_accepted(redis_client: "redis.Redis") -> None:
    keys = IdempotencyKeys(redis_client)
    assert keys.first(SECRET, "t", "key", "one") is None
    assert keys.first(SECRET, "t", "key", "two") is None  # to look uses nothing up
    keys.keep(SECRET, "t", "key", "two", "a2")
    keys.keep(SECRET, "t", "key", "two", "another adapter")
    assert keys.first(SECRET, "t", "key", "two") == "a2" and keys.first(SECRET, "u", "key", "one") is None
    with pytest.raises(KeyUsedOtherwise):
        keys.first(SECRET, "t", "key", "one")
    with pytest.raises(KeyUsedOtherwise):
        keys.keep(SECRET, "t", "key", "one", "a1")
    assert all(0 < redis_client.ttl(name) <= 24 * 3600 for name in redis_client.scan_iter("qs:*"))


def test_of_those_who_come_at_once_one_is_the_first(redis_client: "redis.Redis") -> None:
    keys = IdempotencyKeys(redis_client)

    def keep(number: int) -> bool:
        try:
            keys.keep(SECRET, "t", "key", f"request {number}", f"a{number}")
        except KeyUsedOtherwise:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(keep, range(40))) == 1
