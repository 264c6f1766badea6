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

    def first(self, secret: bytes, tenant: str, key: str, request: str, adapter_id: str) -> str:
        """The adapter of the first request that came with the key: `adapter_id` where this is the first. Raises
        KeyUsedOtherwise where that was another request."""
        digest = _digest(secret, request)
        name = f"qs:{tenant}:idempotency:{_digest(secret, key)}"
        # One command, so of two that come at once one is the first.
        before = cast(bytes | None, self._redis.set(name, f"{digest} {adapter_id}", nx=True, get=True, ex=KEPT_SECONDS))
        if before is None:
            return adapter_id
        its_digest, its_adapter = before.decode().split(" ")
        if its_digest != digest:
            raise KeyUsedOtherwise("Idempotency-Key: another request came with this key within the last 24 hours")
        return its_adapter


def _digest(secret: bytes, text: str) -> str:
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()
