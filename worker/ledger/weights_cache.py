"""The cache of adapter weights in Redis.

Weights are bytes with a TTL, unless their adapter is pinned. Their digest is checked when they are read.
"""

import hashlib
from typing import cast

import redis

from worker.errors import WeightsCorrupt, WeightsMissing
from worker.ledger import names


def weights_digest(content: bytes) -> str:
    """Return the sha256 of an adapter's bytes, the digest in records and answers."""
    return hashlib.sha256(content).hexdigest()


class WeightStore:
    """Stores weights in the cache. Every method raises `redis.RedisError` if the cache cannot be reached.

    Each claim writes under its own fence, so removing the weights of a stale worker cannot affect those that another committed.
    """

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client

    def put(self, tenant: str, adapter_id: str, fence: int, content: bytes, ttl_ms: int) -> None:
        self._redis.set(names.weights(tenant, adapter_id, fence), content, px=ttl_ms)

    def get(self, tenant: str, adapter_id: str, fence: int, digest: str) -> bytes:
        """Return the weights.

        Raises WeightsMissing if they are not in the cache. Raises WeightsCorrupt if they do not have this `digest`, after removing
        them from the cache.
        """
        content = cast(bytes | None, self._redis.get(names.weights(tenant, adapter_id, fence)))
        if content is None:
            raise WeightsMissing(f"the weights of {adapter_id} are no longer in the cache")
        if weights_digest(content) != digest:
            self.remove(tenant, adapter_id, fence)
            raise WeightsCorrupt(f"the cached weights of {adapter_id} do not match the digest in the record")
        return content

    def has(self, tenant: str, adapter_id: str, fence: int) -> bool:
        return bool(self._redis.exists(names.weights(tenant, adapter_id, fence)))

    def keep(self, tenant: str, adapter_id: str, fence: int, ttl_ms: int | None) -> bool:
        """Restart the TTL, or remove it if `ttl_ms` is None. Return False if the weights are gone.

        Weights without a TTL neither expire nor are evicted under the policy `volatile-lru`.
        """
        if ttl_ms is not None:
            return bool(self._redis.pexpire(names.weights(tenant, adapter_id, fence), ttl_ms))
        self._redis.persist(names.weights(tenant, adapter_id, fence))
        return self.has(tenant, adapter_id, fence)

    def remove(self, tenant: str, adapter_id: str, fence: int) -> None:
        self._redis.delete(names.weights(tenant, adapter_id, fence))
