"""No request waits for the threads that all requests share, and requests share their reads of Redis."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
import httpx
import pytest
import redis

from metatrain.artifacts.baselines import lora_from_zero
from metatrain.models.base import Base
from service.http.app import create_app
from service.http.auth import Authenticator
from service.http.shared_reads import SharedReads
from service.http.state import ServiceState
from service.http.tenants import CachedTenants
from service.settings import ServiceSettings
from tests.conftest import RedisServer
from tests.service.workerless import BODY, LABELS
from worker.ledger.api_keys import Keys
from worker.ledger.tenants import Tenants
from worker.runtime import Resident


@asynccontextmanager
async def client_of(tiny: Base, redis_server: RedisServer, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Run a service on this event loop and yield a client that calls it without a socket."""
    init = lora_from_zero(tiny)
    all_settings = ServiceSettings(redis_url=redis_server.url, allow_without_keys=True, **settings)
    app = create_app(all_settings, [Resident(tiny, {init.name: init})])
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, client=("10.0.0.9", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=20) as http:
            http.headers["Authorization"] = f"Bearer {Keys(redis.Redis.from_url(redis_server.url)).create('t', '', ['admin'])[1]}"
            yield http


def test_requests_are_answered_while_the_shared_threads_are_busy(tiny: Base, redis_server: RedisServer) -> None:
    large = {
        **BODY,
        "support": [{"input": f"order {n} {LABELS[n % 5]} " + "pizza " * 40, "label": LABELS[n % 5]} for n in range(400)],
    }
    gate = threading.Event()

    async def scenario() -> None:
        async with client_of(tiny, redis_server) as http:
            anyio.to_thread.current_default_thread_limiter().total_tokens = 1
            busy = asyncio.create_task(anyio.to_thread.run_sync(gate.wait, 60))
            await asyncio.sleep(0.1)
            try:
                adapter = (await asyncio.wait_for(http.post("/adapt", json=BODY), 10)).json()["adapter_id"]
                for method, path, body, status in (
                    ("GET", "/healthz", None, 200),
                    ("GET", "/readyz", None, 503),  # there is no worker
                    ("GET", "/docs/swagger-ui-bundle.js", None, 200),
                    ("GET", "/openapi.json", None, 200),
                    ("GET", "/metrics", None, 200),
                    ("GET", "/usage", None, 200),
                    ("GET", "/initializations", None, 200),
                    ("GET", f"/adapters/{adapter}", None, 200),
                    ("POST", "/adapt", large, 202),
                    ("POST", "/adapt", {**BODY, "support": []}, 422),
                    ("POST", f"/adapters/{adapter}/examples", {"support": BODY["support"][:1]}, 202),
                    ("POST", "/predict", {"adapter_id": adapter, "inputs": ["order"]}, 409),
                    ("GET", "/nowhere", None, 404),
                    ("DELETE", f"/adapters/{adapter}", None, 204),
                ):
                    answer = await asyncio.wait_for(http.request(method, path, json=body), 10)
                    assert answer.status_code == status, (method, path, answer.text)
            finally:
                gate.set()
                await busy

    asyncio.run(scenario())


def test_the_work_pool_makes_no_calls_of_redis(tiny: Base, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    send: Any = redis.connection.AbstractConnection.send_packed_command

    def noted(connection: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(threading.current_thread().name)
        return send(connection, *arguments, **options)

    async def scenario() -> None:
        async with client_of(tiny, redis_server) as http:
            monkeypatch.setattr(redis.connection.AbstractConnection, "send_packed_command", noted)
            headers = {"Idempotency-Key": "once"}
            adapter = (await http.post("/adapt", json=BODY, headers=headers)).json()["adapter_id"]
            for _ in range(2):
                more = {"support": BODY["support"][:1]}
                assert (await http.post(f"/adapters/{adapter}/examples", json=more)).status_code == 202
                assert (await http.post("/adapt", json=BODY, params={"dry_run": True})).status_code == 200

    asyncio.run(scenario())
    assert len(calls) > 10 and not [name for name in calls if name.startswith("work")]


def test_equal_reads_are_shared_with_their_errors_and_others_are_not() -> None:
    reads: list[str] = []
    gate = threading.Event()

    def read(name: str) -> str:
        reads.append(name)
        gate.wait(10)
        if name == "broken":
            raise redis.TimeoutError
        return name.upper()

    async def scenario() -> None:
        shared = SharedReads(read, keep_seconds=0.2)
        tasks = [asyncio.create_task(shared.get(name)) for name in ("a", "a", "broken", "broken", "b", "a")]
        await asyncio.sleep(0.1)
        tasks[0].cancel()  # the read goes on for the others
        gate.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert sorted(reads) == ["a", "b", "broken"]
        values = [answer if isinstance(answer, str) else type(answer) for answer in answers]
        assert values == [asyncio.CancelledError, "A", redis.TimeoutError, redis.TimeoutError, "B", "A"]
        await asyncio.sleep(0.2)
        assert [await shared.get("a") for _ in range(2)] == ["A", "A"] and reads.count("a") == 2  # kept for a while
        assert shared.latest("a") == "A"
        shared.forget("a")
        assert await shared.get("a") == "A" and reads.count("a") == 3

    asyncio.run(scenario())


def test_requests_share_the_reads_of_their_key_and_their_tenant(redis_client: "redis.Redis") -> None:
    reads: list[str] = []

    class SlowKeys(Keys):
        """Keys on a slow server."""

        def find(self, identity: str) -> Any:
            reads.append(identity)
            time.sleep(0.2)
            return super().find(identity)

    class SlowTenants(Tenants):
        """Tenants on a slow server."""

        def get(self, tenant: str) -> Any:
            reads.append(tenant)
            time.sleep(0.2)
            return super().get(tenant)

    async def scenario() -> None:
        keys = SlowKeys(redis_client)
        identity, key, _ = keys.create("acme", "", ["read"])
        authenticator, tenants = Authenticator(keys, open_allowed=False), CachedTenants(SlowTenants(redis_client), {})
        header = [f"Bearer {key}".encode()]
        await asyncio.gather(*[authenticator.authenticate(header) for _ in range(50)])
        await asyncio.gather(*[tenants.refresh("acme") for _ in range(50)])
        assert reads == [identity, "acme"]

    asyncio.run(scenario())


def test_readyz_asks_the_servers_once_a_second(tiny: Base, redis_server: RedisServer, redis_client: "redis.Redis") -> None:
    async def scenario() -> None:
        async with client_of(tiny, redis_server) as http:
            await http.get("/readyz")

            def pings() -> int:
                return int(redis_client.info("commandstats").get("cmdstat_ping", {}).get("calls", 0))

            before, began = pings(), time.monotonic()
            assert {answer.status_code for answer in await asyncio.gather(*[http.get("/readyz") for _ in range(50)])} == {503}
            assert pings() - before <= 1 + (time.monotonic() - began)
            redis_server.stop()
            await asyncio.sleep(1)
            assert (await http.get("/readyz")).json()["missing"] == ["redis", "cache"]

    asyncio.run(scenario())


def test_unused_keys_and_tenants_are_forgotten(redis_client: "redis.Redis", monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys(redis_client)
    monkeypatch.setattr("service.http.shared_reads.DROP_SECONDS", 0.3)

    async def scenario() -> None:
        authenticator, tenants = Authenticator(keys, open_allowed=False), CachedTenants(Tenants(redis_client), {"MAX_JOBS": 1})
        for pause in range(3):
            await asyncio.sleep(0.35)
            for n in range(3):
                name = f"t{pause}-{n}"
                await authenticator.authenticate([f"Bearer {keys.create(name, '', ['read'])[1]}".encode()])
                await tenants.refresh(name)
                assert tenants.limits_of(name) == {"MAX_JOBS": 1}
        assert len(authenticator._keys._values) < 9 and len(tenants._settings._values) < 9

    asyncio.run(scenario())


def test_an_error_while_the_service_stops_leaves_no_predictor_behind(tiny: Base, redis_server: RedisServer) -> None:
    states: list[ServiceState] = []

    async def scenario() -> None:
        async with client_of(tiny, redis_server) as http:
            transport: Any = http._transport
            states.append(transport.app.state.service)

            async def fail() -> None:
                raise ValueError("unexpected")

            states[0].meter.writes.close = fail  # type: ignore[method-assign]

    with pytest.raises(ValueError, match="unexpected"):
        asyncio.run(scenario())
    assert not states[0].deployed[0].predictor.alive()


def test_probes_by_address_are_answered_whatever_hosts_are_allowed(tiny: Base, redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with client_of(tiny, redis_server, allowed_hosts="api.example.com") as http:
            for host, path, status in (
                ("10.1.2.3:8000", "/healthz", 200),
                ("10.1.2.3:8000", "/readyz", 503),
                ("attacker.example", "/healthz", 421),
                ("10.1.2.3:8000", "/usage", 421),
                ("api.example.com", "/usage", 200),
            ):
                assert (await http.get(path, headers={"Host": host})).status_code == status, (host, path)

    asyncio.run(scenario())
