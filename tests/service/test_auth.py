"""The door and the binding rule, on a real server of records."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
import redis

from service.errors import Unauthenticated
from service.http.auth import Access, Door
from service.running.binding import BindingRefused, listen, opened
from service.running.serving import run
from service.settings import ServiceSettings
from tests.conftest import RedisServer
from worker.ledger.api_keys import KEY_CACHE_SECONDS, SCOPES, Keys

T = TypeVar("T")


def asked(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def bearer(whole: str) -> list[bytes]:
    return [f"Bearer {whole}".encode()]


async def turns_away(door: Door, headers: list[bytes]) -> bool:
    try:
        await door.admit(headers)
    except Unauthenticated:
        return True
    return False


def test_a_service_is_open_until_the_first_key_and_never_again(redis_client: "redis.Redis") -> None:
    keys = Keys(redis_client)

    async def life() -> None:
        door = Door(keys, open_allowed=True)
        assert await door.admit([]) == Access("default", SCOPES) == await door.admit([b"Basic YWJj"])
        identity, whole, _ = keys.create("acme", "", ["predict"])
        assert await door.admit(bearer(whole)) == Access("acme", ("predict",), identity)  # at once, and not as `default`
        assert await turns_away(door, [])
        keys.revoke(identity)
        redis_client.flushall()
        assert await turns_away(door, [])  # the records are lost, and this process still knows
        assert not await turns_away(Door(keys, open_allowed=True), [])

    asked(life())


def test_admin_has_the_other_scopes() -> None:
    admin, predict = Access("t", ("admin",)), Access("t", ("predict",))
    assert admin.allows("adapt") and admin.allows("predict") and admin.allows("admin")
    assert predict.allows("predict") and not predict.allows("adapt") and not predict.allows("admin")


def test_the_first_key_closes_a_service_that_nobody_has_shown_it_to(redis_client: "redis.Redis") -> None:
    keys = Keys(redis_client)

    async def life() -> None:
        door = Door(keys, open_allowed=True)
        await door.admit([])
        keys.revoke(keys.create("acme", "", ["predict"])[0])
        await asyncio.sleep(KEY_CACHE_SECONDS + 0.05)
        assert await turns_away(door, [])

    asked(life())


def test_a_revoked_or_expired_key_ends_within_the_stated_time(redis_client: "redis.Redis") -> None:
    keys = Keys(redis_client)

    async def life() -> None:
        door = Door(keys, open_allowed=False)
        identity, whole, _ = keys.create("acme", "", ["predict"])
        short = keys.create("acme", "", ["predict"], lives_ms=100)[1]
        assert not await turns_away(door, bearer(whole)) and not await turns_away(door, bearer(short))
        keys.revoke(identity)
        await asyncio.sleep(KEY_CACHE_SECONDS + 0.05)
        assert await turns_away(door, bearer(whole)) and await turns_away(door, bearer(short))

    asked(life())


def test_only_one_right_header_lets_in(redis_client: "redis.Redis") -> None:
    keys = Keys(redis_client)
    _, whole, _ = keys.create("acme", "", ["predict"])
    _, other, _ = keys.create("acme", "", ["predict"])

    async def life() -> None:
        door = Door(keys, open_allowed=True)
        assert not await turns_away(door, [f"bearer  {whole} ".encode()])
        mixed = whole[:16] + other[16:]  # one's id, another's secret
        for headers in (bearer(mixed), bearer(whole) * 2, [whole.encode()], [b"Basic " + whole.encode()], bearer(whole[:-1])):
            assert await turns_away(door, headers)

    asked(life())


def test_without_records_nobody_is_let_in(redis_server: RedisServer, redis_client: "redis.Redis") -> None:
    door, (_, whole, _) = Door(Keys(redis_client), open_allowed=True), Keys(redis_client).create("acme", "", ["predict"])
    redis_server.stop()
    for headers in ([], bearer(whole)):
        with pytest.raises(redis.RedisError):
            asked(door.admit(headers))


def test_an_open_service_is_on_loopback_alone(redis_server: RedisServer, redis_client: "redis.Redis") -> None:
    settings = ServiceSettings(redis_url=redis_server.url)
    for host in ("127.0.0.1", "127.3.2.1", "::1"):
        assert opened(settings, host).allow_without_keys
    for host in ("0.0.0.0", "::", "192.0.2.1", "fe80::1%eth0"):
        with pytest.raises(BindingRefused, match=r"quickstudy keys create.* --without-keys"):
            opened(settings, host)
    listening = listen("0.0.0.0", 0)
    with pytest.raises(SystemExit, match=r"^error: --host 0\.0\.0\.0: expected a loopback address [^\n]*$"):
        run(settings, listening)
    listening.close()
    assert opened(settings.model_copy(update={"allow_without_keys": True}), "0.0.0.0").allow_without_keys
    Keys(redis_client).create("acme", "", ["predict"])
    assert not opened(settings, "0.0.0.0").allow_without_keys
    redis_server.stop()
    assert not opened(settings, "0.0.0.0").allow_without_keys  # it cannot be known: closed, whatever comes back
