"""Idempotency keys of requests, as digests."""

import hashlib
import hmac

from worker.ledger.idempotency import IdempotencyKey


def idempotency_key(secret: bytes, key: str, request: str) -> IdempotencyKey:
    """Return an idempotency key and the request that uses it, both only as keyed digests.

    The digests are HMAC-SHA256 with `secret`. So the examples of a deleted adapter do not remain in Redis.
    """
    return IdempotencyKey(_digest(secret, key), _digest(secret, request))


def _digest(secret: bytes, text: str) -> str:
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()
