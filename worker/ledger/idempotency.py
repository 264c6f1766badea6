"""Idempotency keys: for a day, the request that first used a key, and the adapter that it asked for.

A key is stored in the atomic step that accepts the job (`lua/accept.lua`). So of several requests with one key at the same moment,
one is accepted; equal ones get the same adapter, and different ones are refused and write no job.

A key has no TTL in Redis, because a server that evicts weights would evict it too. It has a time in `qs:idempotency` instead, at
which the reaper removes it. Earlier versions set a TTL of a day on the same keys, and read the ones of this version.
"""

from dataclasses import dataclass

import redis

from worker.ledger import names, scripts

KEPT_MS = 24 * 3600 * 1000


@dataclass(frozen=True)
class IdempotencyKey:
    """An idempotency key of a request.

    `digest` identifies the key, and `request` the request; both are keyed digests.
    """

    digest: str
    request: str


class ExpiredKeys:
    """Removes idempotency keys that have expired. Raises `redis.RedisError` if Redis cannot be reached."""

    def __init__(self, client: "redis.Redis") -> None:
        self._sweep = scripts.register(client, "sweep_idempotency")

    def remove(self, most: int = 100) -> int:
        """Remove up to `most` keys, and return how many were removed."""
        return int(self._sweep(keys=[names.IDEMPOTENCY], args=[most]))
