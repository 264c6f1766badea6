"""Own limits and shares of tenants on a real Redis server."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from worker.errors import InvalidKey, InvalidLimit
from worker.ledger.audit import AuditLog
from worker.ledger.tenants import Tenants, TenantSettings
from worker.ledger.usage import LIMITS


def test_settings_are_added_up_and_unset_one_by_one(redis_client: "redis.Redis") -> None:
    tenants = Tenants(redis_client)
    assert tenants.get("acme") == TenantSettings({}, 1) and tenants.all() == {}
    assert tenants.change("acme", {"MAX_JOBS": 50, "MAX_ADAPTERS": 0}) == TenantSettings({"MAX_JOBS": 50, "MAX_ADAPTERS": 0})
    assert tenants.change("acme", {"MAX_JOBS": 7}, share=3) == TenantSettings({"MAX_JOBS": 7, "MAX_ADAPTERS": 0}, 3)
    tenants.change("aaa", {}, share=2)
    assert list(tenants.all()) == ["aaa", "acme"] and tenants.get("acme").share == 3 and tenants.get("globex") == TenantSettings()
    assert tenants.reset("acme", ["MAX_JOBS"]) and not tenants.reset("acme", ["MAX_JOBS"])
    assert tenants.get("acme") == TenantSettings({"MAX_ADAPTERS": 0}, 3)
    assert tenants.reset("acme", ["share"]) and tenants.reset("acme") and not tenants.reset("acme")
    assert tenants.reset("aaa") and redis_client.exists("qs:tenants") == 0
    entries = [(entry.action, entry.tenant, dict(entry.details)) for entry in AuditLog(redis_client).since(0, "acme")]
    assert entries == [
        ("limits.set", "acme", {"MAX_JOBS": 50, "MAX_ADAPTERS": 0}),
        ("limits.set", "acme", {"MAX_JOBS": 7, "share": 3}),
        ("limits.unset", "acme", {"names": ["MAX_JOBS"]}),
        ("limits.unset", "acme", {"names": ["share"]}),
        ("limits.unset", "acme", {"names": ["MAX_ADAPTERS"]}),
    ]


def test_changes_at_the_same_time_are_all_kept(redis_client: "redis.Redis") -> None:
    with ThreadPoolExecutor(len(LIMITS)) as pool:
        list(pool.map(lambda limit: Tenants(redis_client).change("acme", {limit: 5}), LIMITS))
    assert Tenants(redis_client).get("acme").limits == dict.fromkeys(LIMITS, 5)


@pytest.mark.parametrize(
    ("limits", "share", "message"),
    [
        ({"MAX_JOBS": -1}, None, "MAX_JOBS: expected .* from 0 to 1000000000000000, got -1"),
        ({"MAX_JOBS": 10**16}, None, "MAX_JOBS: expected"),
        ({"MAX_TEXT_CHARS": 1}, None, "MAX_TEXT_CHARS: expected one of MAX_ADAPTERS, "),
        ({}, 0, "share: expected 1 to 1000, got 0"),
    ],
)
def test_values_that_are_not_allowed_change_nothing(
    redis_client: "redis.Redis", limits: dict[str, int], share: int | None, message: str
) -> None:
    with pytest.raises(InvalidLimit, match=message):
        Tenants(redis_client).change("acme", {"MAX_ALIASES": 1, **limits}, share)
    with pytest.raises(InvalidKey):
        Tenants(redis_client).change("a/b", {"MAX_ALIASES": 1})
    assert Tenants(redis_client).all() == {} and list(AuditLog(redis_client).since(0)) == []


def test_a_limit_of_a_later_version_is_left_out(redis_client: "redis.Redis") -> None:
    redis_client.hset("qs:tenants", "acme", '{"limits": {"MAX_JOBS": 3, "MAX_DREAMS": 4}, "share": 2, "colour": "red"}')
    assert Tenants(redis_client).get("acme") == TenantSettings({"MAX_JOBS": 3}, 2)
