"""Which request an Idempotency-Key came with first, and which adapter that gave. Kept beside the records for a day."""

import hashlib
import hmac
from typing import cast

import redis

from service.errors import KeyUsedOtherwise

KEPT_SECONDS = 24 * 3600


class IdempotencyKeys:
    """On one Redis, by tenant. Neither keys nor requests are stored, only keyed digests of them, so that nothing of a deleted
    adapter's examples stays here. Methods may raise `redis.RedisError`."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client

    def first(self, secret: bytes, tenant: str, key: str, request: str) -> str | None:
        """The adapter of the first request that came with the key and was accepted; None where there was none. Raises
        KeyUsedOtherwise where that was another request."""
        return _adapter(cast(bytes | None, self._redis.get(_name(secret, tenant, key))), _digest(secret, request))

    def keep(self, secret: bytes, tenant: str, key: str, request: str, adapter_id: str) -> None:
        """Have the key stand for a request that was accepted, unless it stands for one already. Raises KeyUsedOtherwise where
        that is another request: of two that come at once one is the first."""
        digest = _digest(secret, request)
        content = f"{digest} {adapter_id}"
        before = self._redis.set(_name(secret, tenant, key), content, nx=True, get=True, ex=KEPT_SECONDS)
        _adapter(cast(bytes | None, before), digest)


def _name(secret: bytes, tenant: str, key: str) -> str:
    return f"qs:{tenant}:idempotency:{_digest(secret, key)}"


def _adapter(kept: bytes | None, digest: str) -> str | None:
    """Raises KeyUsedOtherwise where what is kept has another digest."""
    if kept is None:
        return None
    its_digest, its_adapter = kept.decode().split(" ")
    if its_digest != digest:
        raise KeyUsedOtherwise("Idempotency-Key: another request came with this key within the last 24 hours")
    return its_adapter


def _digest(secret: bytes, text: str) -> str:
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()
