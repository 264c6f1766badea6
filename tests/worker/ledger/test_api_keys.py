"""API keys on a real Redis server."""

import base64
import hashlib
import json
import re
import time
from typing import Literal

import pytest
import redis
from pydantic import BaseModel, ConfigDict

from worker.errors import InvalidKey, UnknownKey
from worker.ledger import names
from worker.ledger.api_keys import _RESERVED, SCOPES, TENANT_PATTERN, Keys, Scope, parts, proves
from worker.ledger.audit import AuditLog


class EarlierKey(BaseModel):
    """The stored form of a key as versions before the scopes `read` and `metrics` read and write it."""

    model_config = ConfigDict(frozen=True)

    tenant: str
    name: str
    scopes: tuple[Literal["adapt", "predict", "admin"], ...]
    sha256: str
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None


def test_a_key_is_kept_as_a_hash_and_proves_itself(redis_client: "redis.Redis") -> None:
    keys = Keys(redis_client)
    assert not keys.any() and keys.list() == []
    identity, whole, stored = keys.create("acme", "laptop", ["predict", "adapt"])
    split = parts(whole)
    assert split is not None and split[0] == identity
    secret = split[1]
    assert len(base64.urlsafe_b64decode(secret + "=")) == 32
    found, now = keys.find(identity)
    assert found == stored and found is not None and found.holds(now)
    assert (found.tenant, found.name, found.scopes) == ("acme", "laptop", ("adapt", "predict"))
    assert proves(found, secret)
    other = parts(keys.create("acme", "", ["predict"])[1])
    assert other is not None and not proves(found, other[1]) and not proves(None, secret) and not proves(found, "")
    stored_hash = repr(redis_client.hgetall("qs:keys"))
    assert identity in stored_hash and secret not in stored_hash


def test_revoked_and_expired_keys_are_invalid_and_stay_on_the_list(redis_client: "redis.Redis") -> None:
    keys = Keys(redis_client)
    revoked, expiring = keys.create("t", "", ["admin"])[0], keys.create("t", "", ["admin"], lives_ms=30)[0]
    assert keys.revoke(revoked) and keys.revoke(revoked) and not keys.revoke("0" * 12)
    time.sleep(0.05)
    for identity in (revoked, expiring):
        found, now = keys.find(identity)
        assert found is not None and not found.holds(now)
    assert keys.any() and [identity for identity, _ in keys.list()] == sorted(
        (revoked, expiring),
        key=lambda identity: (dict(keys.list())[identity].created_at, identity),  # both may be created in the same millisecond
    )
    assert keys.find("0" * 12)[0] is None


@pytest.mark.parametrize("tenant", ["", "-a", "A", "a/b", "a:b", "a" * 64, "tenant\n", "é", "worker", "celery"])
def test_a_tenant_whose_redis_keys_could_be_anothers_is_refused(redis_client: "redis.Redis", tenant: str) -> None:
    with pytest.raises(InvalidKey, match="tenant: expected"):
        Keys(redis_client).create(tenant, "", ["adapt"])
    assert not Keys(redis_client).any()


@pytest.mark.parametrize(
    "presented", ["", "qs_", "qs_0123456789ab_" + "a" * 42, "qs_0123456789AB_" + "a" * 43, "qs_0123456789ab_" + "a" * 43 + "\n"]
)
def test_text_without_the_form_of_a_key_has_no_parts(presented: str) -> None:
    assert parts(presented) is None


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [
        (["read"], {"read"}),
        (["metrics"], {"metrics"}),
        (["adapt"], {"read", "adapt"}),
        (["predict"], {"read", "predict"}),
        (["predict", "metrics"], {"read", "predict", "metrics"}),
        (["admin"], {"read", "adapt", "predict", "metrics", "admin"}),
    ],
)
def test_a_scope_allows_what_it_includes_and_nothing_else(
    redis_client: "redis.Redis", scopes: list[Scope], allowed: set[Scope]
) -> None:
    key, _ = Keys(redis_client).find(Keys(redis_client).create("t", "", scopes)[0])
    assert key is not None and {scope for scope in SCOPES if key.allows(scope)} == allowed


@pytest.mark.parametrize("scopes", [["read"], ["metrics"], ["adapt", "metrics"], ["admin"]])
def test_an_earlier_version_allows_no_more_than_this_one(redis_client: "redis.Redis", scopes: list[Scope]) -> None:
    """A service of an earlier version, which lets every valid key read, may run beside this one."""
    identity, whole, key = Keys(redis_client).create("t", "", scopes, lives_ms=10**9)
    split, content = parts(whole), redis_client.hget("qs:keys", identity)
    assert split is not None and content is not None and proves(key, split[1])
    earlier = EarlierKey.model_validate_json(content)
    accepted = earlier.sha256 == hashlib.sha256(split[1].encode()).hexdigest()
    assert accepted == key.allows("read") and set(earlier.scopes) == set(scopes) & {"adapt", "predict", "admin"}
    redis_client.hset("qs:keys", identity, earlier.model_copy(update={"revoked_at": 1}).model_dump_json(exclude_none=True))
    revoked, now = Keys(redis_client).find(identity)
    assert revoked is not None and not revoked.holds(now)


@pytest.mark.parametrize("scopes", [(), ("adapt",), ("predict",), ("admin",)])
def test_a_key_of_an_earlier_version_works_as_before(
    redis_client: "redis.Redis", scopes: tuple[Literal["adapt", "predict", "admin"], ...]
) -> None:
    stored = EarlierKey(tenant="t", name="old", scopes=scopes, sha256=hashlib.sha256(b"secret").hexdigest(), created_at=1)
    redis_client.hset("qs:keys", "0" * 12, stored.model_dump_json(exclude_none=True))
    key, now = Keys(redis_client).find("0" * 12)
    assert key is not None and key.holds(now) and proves(key, "secret") and key.allows("read")
    assert {scope for scope in ("adapt", "predict", "admin") if scope in key.scopes} == set(scopes)


def test_a_scope_of_a_later_version_is_left_out(redis_client: "redis.Redis") -> None:
    identity, _, _ = Keys(redis_client).create("t", "", ["metrics"])
    content = json.loads(redis_client.hget("qs:keys", identity) or "")
    redis_client.hset("qs:keys", identity, json.dumps({**content, "further_scopes": ["metrics", "export"], "colour": 1}))
    key, _ = Keys(redis_client).find(identity)
    assert key is not None and key.scopes == ("metrics",)


def test_a_rotated_key_works_until_its_grace_time_ends(redis_client: "redis.Redis") -> None:
    keys = Keys(redis_client)
    old, _, created = keys.create("acme", "laptop", ["predict", "metrics"])
    new, whole, key = keys.rotate(old, 50)
    split = parts(whole)
    assert split is not None and split[0] == new != old and proves(keys.find(new)[0], split[1])
    assert (key.tenant, key.name, key.scopes) == (created.tenant, created.name, created.scopes) and key.expires_at is None
    replaced, now = keys.find(old)
    assert replaced is not None and replaced.holds(now) and replaced.replaced_by == new and replaced.sha256 == created.sha256
    with pytest.raises(InvalidKey, match=f"{old} is rotated already"):
        keys.rotate(old, 50)
    time.sleep(0.06)
    assert not replaced.holds(keys.now()) and key.holds(keys.now())
    newest = keys.rotate(new, 0)[0]
    last, now = keys.find(new)
    assert last is not None and not last.holds(now) and len(keys.list()) == 3
    keys.revoke(newest)
    for identity, state in ((newest, "revoked"), (keys.create("t", "", ["read"], lives_ms=1)[0], "expired")):
        time.sleep(0.005)
        with pytest.raises(InvalidKey, match=f"{identity} is {state}"):
            keys.rotate(identity, 50)
    with pytest.raises(UnknownKey):
        keys.rotate("0" * 12, 50)
    with pytest.raises(InvalidKey, match="grace: expected a time of 0"):
        keys.rotate(newest, -1)


def test_the_new_key_of_a_rotation_lives_as_long_as_the_old_one_did(redis_client: "redis.Redis") -> None:
    keys = Keys(redis_client)
    old, _, created = keys.create("acme", "", ["predict"], lives_ms=5_000)
    time.sleep(0.02)
    _, _, key = keys.rotate(old, 60_000)
    assert key.expires_at is not None and key.expires_at - key.created_at == 5_000 and key.created_at > created.created_at
    replaced, _ = keys.find(old)
    assert replaced is not None and replaced.expires_at == created.expires_at  # the grace time does not prolong its life


def test_every_change_of_a_key_is_in_the_audit_log_once(redis_client: "redis.Redis") -> None:
    keys = Keys(redis_client)
    old = keys.create("acme", "a private name", ["predict"])[0]
    new = keys.rotate(old, 0)[0]
    keys.revoke(new)
    keys.revoke(new)
    with pytest.raises(InvalidKey):
        keys.rotate(new, 0)
    entries = list(AuditLog(redis_client).since(0))
    assert [(entry.action, entry.subject) for entry in entries] == [
        ("key.created", old),
        ("key.rotated", old),
        ("key.revoked", new),
    ]
    assert entries[0].details == {"scopes": ["predict"]} and entries[1].details["to"] == new
    assert all(entry.tenant == "acme" for entry in entries) and "private" not in repr(entries)


def test_a_key_without_scopes_is_refused(redis_client: "redis.Redis") -> None:
    with pytest.raises(InvalidKey, match="scope: expected at least one of read, adapt"):
        Keys(redis_client).create("t", "", [])


def test_no_key_of_the_deployment_can_be_one_of_a_tenant() -> None:
    """Check with the table in `names.py` that the two kinds of names cannot be equal."""
    assert names.__doc__ is not None
    deployment, _, of_tenants = names.__doc__.partition("Keys of a tenant")
    listed = re.findall(r"^\| `qs:([^`]*)` \|", deployment, re.M)
    assert len(listed) > 20 and {"keys", "tenants", "audit", "celery:…"} <= set(listed)
    kinds = re.findall(r"^\| `…:([a-z-]+)", of_tenants, re.M)
    assert len(kinds) > 10
    for name in listed:
        first, colon, rest = name.partition(":")
        is_possible_tenant = re.fullmatch(TENANT_PATTERN, first) and first not in _RESERVED
        assert not colon or not is_possible_tenant or (first, rest) == ("waiting", "PASS_KEY"), name
    assert not any("/" in kind for kind in kinds)  # a pass key has slashes, and no further colon
