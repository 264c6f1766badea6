"""Limits of single tenants, the audit log and the last use of keys, on a running service."""

import time
from typing import Any

import httpx
import pytest
import redis

from metatrain.models.base import Base
from service.http import key_uses
from tests.conftest import RedisServer
from tests.service.test_meter import in_one_minute
from tests.service.workerless import BODY, queued, running
from worker.ledger.api_keys import KEY_CACHE_SECONDS, Keys, Scope
from worker.ledger.key_uses import KeyUses
from worker.ledger.tenants import Tenants


def headers_of(keys: Keys, tenant: str, *scopes: Scope) -> tuple[str, dict[str, str]]:
    """Create a key. Return its id, and the headers of its requests."""
    identity, whole, _ = keys.create(tenant, "", scopes)
    return identity, {"Authorization": f"Bearer {whole}"}


def adapt(http: httpx.Client, seed: int, headers: dict[str, str]) -> httpx.Response:
    return http.post("/adapt", json={**BODY, "options": {"steps": 0, "seed": seed}}, headers=headers)


def limit_of(answer: httpx.Response) -> tuple[int, Any, Any]:
    return answer.status_code, answer.json().get("limit"), answer.json().get("most")


def test_own_limits_hold_without_a_restart_and_for_their_tenant_alone(
    tiny: Base, redis_server: RedisServer, redis_client: "redis.Redis"
) -> None:
    keys, tenants = Keys(redis_client), Tenants(redis_client)
    _, own = headers_of(keys, "acme", "adapt")
    _, other = headers_of(keys, "globex", "adapt")
    in_one_minute(redis_client)
    with running(tiny, redis_server, max_jobs=1, max_aliases=3, max_streams=5) as http:
        adapter = queued(http, headers=own)
        assert limit_of(adapt(http, 1, own)) == (429, "MAX_JOBS", 1)
        tenants.change("acme", {"MAX_JOBS": 3, "MAX_ALIASES": 1, "MAX_STREAMS": 1, "MAX_REQUESTS_A_MINUTE": 200})
        time.sleep(KEY_CACHE_SECONDS + 0.05)
        assert adapt(http, 1, own).status_code == adapt(http, 2, own).status_code == 202
        assert limit_of(adapt(http, 3, own)) == (429, "MAX_JOBS", 3)
        assert http.put("/aliases/one", json={"adapter_id": adapter}, headers=own).status_code == 200
        assert limit_of(http.put("/aliases/two", json={"adapter_id": adapter}, headers=own)) == (429, "MAX_ALIASES", 1)
        with http.stream("GET", f"/adapters/{adapter}/events", headers=own) as stream:
            assert stream.status_code == 200
            assert limit_of(http.get(f"/adapters/{adapter}/events", headers=own)) == (429, "MAX_STREAMS", 1)
        limits = http.get("/usage", headers=own).json()["limits"]
        assert limits == {
            **http.get("/usage", headers=other).json()["limits"],
            "MAX_JOBS": 3,
            "MAX_ALIASES": 1,
            "MAX_STREAMS": 1,
            "MAX_REQUESTS_A_MINUTE": 200,
        }
        answers = [limit_of(http.get("/usage", headers=own)) for _ in range(410)]  # the minute of the clock may change once
        assert (429, "MAX_REQUESTS_A_MINUTE", 200) in answers
        queued(http, headers=other)
        assert limit_of(adapt(http, 1, other)) == (429, "MAX_JOBS", 1)  # the default still holds for others
        tenants.reset("acme")
        time.sleep(KEY_CACHE_SECONDS + 0.05)
        assert http.get("/usage", headers=own).json()["limits"] == http.get("/usage", headers=other).json()["limits"]


def test_an_own_limit_of_zero_lifts_the_default(tiny: Base, redis_server: RedisServer, redis_client: "redis.Redis") -> None:
    Tenants(redis_client).change("default", {"MAX_JOBS": 0})
    with running(tiny, redis_server, max_jobs=1) as http:
        for seed in range(3):
            queued(http, seed)


def test_an_administrator_sees_the_changes_of_its_own_tenant(
    tiny: Base, redis_server: RedisServer, redis_client: "redis.Redis"
) -> None:
    keys = Keys(redis_client)
    admin_id, admin = headers_of(keys, "acme", "admin")
    adapt_id, changer = headers_of(keys, "acme", "adapt")
    _, other = headers_of(keys, "globex", "admin")
    with running(tiny, redis_server) as http:
        adapter, theirs = queued(http, headers=changer), queued(http, headers=other)
        for name in ("one", "two"):
            moved = http.put(f"/aliases/{name}", json={"adapter_id": adapter}, headers={**changer, "X-Request-ID": f"r-{name}"})
            assert moved.status_code == 200
        assert http.delete(f"/adapters/{adapter}", headers=changer).status_code == 409
        for name in ("one", "two"):
            assert http.delete(f"/aliases/{name}", headers=changer).status_code == 204
        assert http.delete(f"/adapters/{theirs}", headers=other).status_code == 204
        assert http.delete(f"/adapters/{adapter}", headers=changer).status_code == 204
        assert http.get("/audit", headers=changer).json()["scope"] == "admin"
        entries, cursor = [], None
        while True:
            page = http.get("/audit", params={"limit": 2, **({"cursor": cursor} if cursor else {})}, headers=admin).json()
            entries += page["entries"]
            if (cursor := page["next_cursor"]) is None:
                break
        assert [(entry["action"], entry["subject"]) for entry in entries] == [
            ("adapter.deleted", adapter),
            ("alias.removed", "two"),
            ("alias.removed", "one"),
            ("alias.moved", "two"),
            ("alias.moved", "one"),
            ("key.created", adapt_id),
            ("key.created", admin_id),
        ]
        assert entries[4]["actor"] == {"kind": "key", "id": adapt_id, "address": "127.0.0.1"}
        assert entries[4]["request_id"] == "r-one" and entries[4]["details"] == {"to": adapter}
        assert abs(entries[4]["time"] - time.time()) < 60
        filtered = http.get("/audit", params={"action": "alias.removed"}, headers=admin).json()["entries"]
        assert [entry["subject"] for entry in filtered] == ["two", "one"]
        assert http.get("/audit", headers=other).json()["entries"][0]["subject"] == theirs
        for wrong in ({"cursor": "x"}, {"action": "made.up"}, {"limit": 0}):
            assert http.get("/audit", params=wrong, headers=admin).status_code == 422
    assert str(BODY["support"][0]["input"]) not in repr(redis_client.xrange("qs:acme:audit"))


def test_the_last_use_of_a_key_is_recorded_at_most_once_a_minute(
    tiny: Base, redis_server: RedisServer, redis_client: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, uses = Keys(redis_client), KeyUses(redis_client)
    used, headers = headers_of(keys, "acme", "read")
    revoked, revoked_headers = headers_of(keys, "acme", "read")
    keys.revoke(revoked)
    with running(tiny, redis_server) as http:
        before = keys.now()
        assert http.get("/adapters", headers=headers).status_code == 200
        assert http.get("/adapters", headers=revoked_headers).status_code == 401
        forged = {"Authorization": headers["Authorization"][:-3] + "abc"}
        assert http.get("/adapters", headers=forged).status_code == 401
        deadline = time.monotonic() + 10
        while used not in uses.latest() and time.monotonic() < deadline:
            time.sleep(0.05)
        first = uses.latest()
        assert first.keys() == {used} and before <= first[used] <= keys.now()
        assert http.get("/adapters", headers=headers).status_code == 200
        time.sleep(2.5)  # two rounds of the recorder
        assert uses.latest() == first
        monkeypatch.setattr(key_uses, "WRITE_SECONDS", 0.1)
        time.sleep(1.5)
        assert uses.latest()[used] > first[used]
        http.get("/adapters", headers=headers)
        latest = keys.now()
    assert latest - 1_000 <= uses.latest()[used] <= keys.now()  # a service that stops writes what is left
