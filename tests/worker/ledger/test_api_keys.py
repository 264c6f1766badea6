"""API keys on a real Redis server."""

import base64
import time

import pytest
import redis

from worker.errors import InvalidKey
from worker.ledger.api_keys import Keys, parts, proves


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
