"""Authentication, and the addresses that a service without API keys may listen on.

The keys are stored on a real Redis server.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
import redis

from service.errors import Unauthenticated
from service.http.auth import Access, Authenticator
from service.running.binding import BindingRefused, bind, settings_for_host
from service.running.serving import run
from service.settings import ServiceSettings
from tests.conftest import RedisServer
from worker.ledger.api_keys import KEY_CACHE_SECONDS, SCOPES, Keys

T = TypeVar("T")


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def bearer(secret_key: str) -> list[bytes]:
    return [f"Bearer {secret_key}".encode()]


async def refuses(authenticator: Authenticator, headers: list[bytes]) -> bool:
    try:
        await authenticator.authenticate(headers)
    except Unauthenticated:
        return True
    return False


def test_a_service_is_open_until_the_first_key_and_never_again(redis_client: "redis.Redis") -> None:
    keys = Keys(redis_client)

    async def check() -> None:
        authenticator = Authenticator(keys, open_allowed=True)
        assert (
            await authenticator.authenticate([]) == Access("default", SCOPES) == await authenticator.authenticate([b"Basic YWJj"])
        )
        identity, secret_key, _ = keys.create("acme", "", ["predict"])
        assert await authenticator.authenticate(bearer(secret_key)) == Access(
            "acme", ("predict",), identity
        )  # the key is valid at once, and the tenant is no longer `default`
        assert await refuses(authenticator, [])
        keys.revoke(identity)
        redis_client.flushall()
        assert await refuses(authenticator, [])  # even without the records, this process remembers that a key existed
        assert not await refuses(Authenticator(keys, open_allowed=True), [])

    run_async(check())


def test_admin_has_the_other_scopes() -> None:
    admin, predict = Access("t", ("admin",)), Access("t", ("predict",))
    assert admin.allows("adapt") and admin.allows("predict") and admin.allows("admin")
    assert predict.allows("predict") and not predict.allows("adapt") and not predict.allows("admin")


def test_the_first_key_closes_a_service_that_has_not_received_it(redis_client: "redis.Redis") -> None:
    keys = Keys(redis_client)

    async def check() -> None:
        authenticator = Authenticator(keys, open_allowed=True)
        await authenticator.authenticate([])
        keys.revoke(keys.create("acme", "", ["predict"])[0])
        await asyncio.sleep(KEY_CACHE_SECONDS + 0.05)
        assert await refuses(authenticator, [])

    run_async(check())


def test_a_revoked_or_expired_key_ends_within_the_stated_time(redis_client: "redis.Redis") -> None:
    keys = Keys(redis_client)

    async def check() -> None:
        authenticator = Authenticator(keys, open_allowed=False)
        identity, secret_key, _ = keys.create("acme", "", ["predict"])
        short = keys.create("acme", "", ["predict"], lives_ms=100)[1]
        assert not await refuses(authenticator, bearer(secret_key)) and not await refuses(authenticator, bearer(short))
        keys.revoke(identity)
        await asyncio.sleep(KEY_CACHE_SECONDS + 0.05)
        assert await refuses(authenticator, bearer(secret_key)) and await refuses(authenticator, bearer(short))

    run_async(check())


def test_only_a_single_valid_header_is_accepted(redis_client: "redis.Redis") -> None:
    keys = Keys(redis_client)
    _, secret_key, _ = keys.create("acme", "", ["predict"])
    _, other, _ = keys.create("acme", "", ["predict"])

    async def check() -> None:
        authenticator = Authenticator(keys, open_allowed=True)
        assert not await refuses(authenticator, [f"bearer  {secret_key} ".encode()])
        mixed = secret_key[:16] + other[16:]  # the id of one key, the secret of the other
        for headers in (
            bearer(mixed),
            bearer(secret_key) * 2,
            [secret_key.encode()],
            [b"Basic " + secret_key.encode()],
            bearer(secret_key[:-1]),
        ):
            assert await refuses(authenticator, headers)

    run_async(check())


def test_without_records_no_request_is_accepted(redis_server: RedisServer, redis_client: "redis.Redis") -> None:
    authenticator = Authenticator(Keys(redis_client), open_allowed=True)
    _, secret_key, _ = Keys(redis_client).create("acme", "", ["predict"])
    redis_server.stop()
    for headers in ([], bearer(secret_key)):
        with pytest.raises(redis.RedisError):
            run_async(authenticator.authenticate(headers))


def test_an_open_service_is_on_loopback_alone(redis_server: RedisServer, redis_client: "redis.Redis") -> None:
    settings = ServiceSettings(redis_url=redis_server.url)
    for host in ("127.0.0.1", "127.3.2.1", "::1"):
        assert settings_for_host(settings, host).allow_without_keys
    for host in ("0.0.0.0", "::", "192.0.2.1", "fe80::1%eth0"):
        with pytest.raises(BindingRefused, match=r"quickstudy keys create.* --without-keys"):
            settings_for_host(settings, host)
    listening = bind("0.0.0.0", 0)
    with pytest.raises(SystemExit, match=r"^error: --host 0\.0\.0\.0: expected a loopback address [^\n]*$"):
        run(settings, listening)
    listening.close()
    assert settings_for_host(settings.model_copy(update={"allow_without_keys": True}), "0.0.0.0").allow_without_keys
    Keys(redis_client).create("acme", "", ["predict"])
    assert not settings_for_host(settings, "0.0.0.0").allow_without_keys
    redis_server.stop()
    assert not settings_for_host(settings, "0.0.0.0").allow_without_keys  # keys may exist, so no open access
