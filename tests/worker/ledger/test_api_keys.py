"""API keys against a real server."""

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
    named = parts(whole)
    assert named is not None and named[0] == identity
    assert len(base64.urlsafe_b64decode(named[1] + "=")) == 32
    found, now = keys.find(identity)
    assert found == stored and found is not None and found.holds(now)
    assert (found.tenant, found.name, found.scopes) == ("acme", "laptop", ("adapt", "predict"))
    assert proves(found, named[1])
    other = parts(keys.create("acme", "", ["predict"])[1])
    assert other is not None and not proves(found, other[1]) and not proves(None, named[1]) and not proves(found, "")
    everything = repr(redis_client.hgetall("qs:keys"))
    assert identity in everything and named[1] not in everything


def test_revoked_and_expired_keys_hold_no_more_and_stay_on_the_list(redis_client: "redis.Redis") -> None:
    keys = Keys(redis_client)
    revoked, expiring = keys.create("t", "", ["admin"])[0], keys.create("t", "", ["admin"], lives_ms=30)[0]
    assert keys.revoke(revoked) and keys.revoke(revoked) and not keys.revoke("0" * 12)
    time.sleep(0.05)
    for identity in (revoked, expiring):
        found, now = keys.find(identity)
        assert found is not None and not found.holds(now)
    assert keys.any() and [identity for identity, _ in keys.list()] == sorted(
        (revoked, expiring),
        key=lambda identity: (dict(keys.list())[identity].created_at, identity),  # both in one millisecond
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
def test_what_has_not_the_form_of_a_key_is_none(presented: str) -> None:
    assert parts(presented) is None
