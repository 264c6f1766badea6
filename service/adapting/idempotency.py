"""Store for one day which request first used each idempotency key, and which adapter it asked for."""

import hashlib
import hmac
from typing import cast

import redis

from service.errors import IdempotencyKeyReused

KEPT_SECONDS = 24 * 3600


class IdempotencyKeys:
    """The idempotency keys of all tenants, in Redis.

    Keys and requests are stored only as keyed digests (HMAC-SHA256 with `secret`), so that the examples of a deleted adapter do not
    remain in Redis. Every method may raise `redis.RedisError`.
    """

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client

    def find(self, secret: bytes, tenant: str, key: str, request: str) -> str | None:
        """Return the id of the adapter that an earlier request with this key asked for, or None.

        None means that the key is unused. Raises IdempotencyKeyReused if the earlier request differs from `request`.
        """
        return _adapter(cast(bytes | None, self._redis.get(_name(secret, tenant, key))), _digest(secret, request))

    def keep(self, secret: bytes, tenant: str, key: str, request: str, adapter_id: str) -> None:
        """Store the key of an accepted request, unless the key is stored already.

        Raises IdempotencyKeyReused if the key is stored for a different request. The check and the write are one atomic step: if
        two concurrent requests have the same key, one is stored and the other is compared with it.
        """
        digest = _digest(secret, request)
        content = f"{digest} {adapter_id}"
        before = self._redis.set(_name(secret, tenant, key), content, nx=True, get=True, ex=KEPT_SECONDS)
        _adapter(cast(bytes | None, before), digest)


def _name(secret: bytes, tenant: str, key: str) -> str:
    return f"qs:{tenant}:idempotency:{_digest(secret, key)}"


def _adapter(stored: bytes | None, digest: str) -> str | None:
    """Return the adapter id from a stored value, or None if nothing is stored.

    Raises IdempotencyKeyReused if the stored digest of the request is not `digest`.
    """
    if stored is None:
        return None
    stored_digest, adapter_id = stored.decode().split(" ")
    if stored_digest != digest:
        raise IdempotencyKeyReused(
            "Idempotency-Key: expected the request that this key was first used for, got another one; "
            "use a new key for it, or wait until 24 hours have passed"
        )
    return adapter_id


def _digest(secret: bytes, text: str) -> str:
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()
