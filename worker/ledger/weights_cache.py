"""Store adapter weights in Redis as bytes, with a TTL unless pinned, and check their digest when they are read. Torch-free."""

import hashlib
from typing import cast

import redis

from worker.errors import WeightsCorrupt, WeightsMissing
from worker.ledger import names


def weights_digest(content: bytes) -> str:
    """Return the sha256 of an adapter's bytes, as records and answers state it."""
    return hashlib.sha256(content).hexdigest()


class WeightStore:
    """The weights on one cache. Every method may raise `redis.RedisError` if it cannot be reached.

    Each claim writes under its own fence, so removing what a stale worker wrote cannot touch what another one committed.
    """

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client

    def put(self, tenant: str, adapter_id: str, fence: int, content: bytes, ttl_ms: int) -> None:
        self._redis.set(names.weights(tenant, adapter_id, fence), content, px=ttl_ms)

    def get(self, tenant: str, adapter_id: str, fence: int, digest: str) -> bytes:
        """Return the weights. Raises WeightsMissing; and WeightsCorrupt, after removing them, if `digest` is not theirs."""
        content = cast(bytes | None, self._redis.get(names.weights(tenant, adapter_id, fence)))
        if content is None:
            raise WeightsMissing(f"the weights of {adapter_id} are no longer cached")
        if weights_digest(content) != digest:
            self.remove(tenant, adapter_id, fence)
            raise WeightsCorrupt(f"the cached weights of {adapter_id} do not have the digest on record")
        return content

    def has(self, tenant: str, adapter_id: str, fence: int) -> bool:
        return bool(self._redis.exists(names.weights(tenant, adapter_id, fence)))

    def keep(self, tenant: str, adapter_id: str, fence: int, ttl_ms: int | None) -> bool:
        """Start the TTL again, or with None remove it. Return False if the weights are gone.

        Without a TTL they neither expire nor can be evicted by `volatile-lru`.
        """
        if ttl_ms is not None:
            return bool(self._redis.pexpire(names.weights(tenant, adapter_id, fence), ttl_ms))
        self._redis.persist(names.weights(tenant, adapter_id, fence))
        return self.has(tenant, adapter_id, fence)

    def remove(self, tenant: str, adapter_id: str, fence: int) -> None:
        self._redis.delete(names.weights(tenant, adapter_id, fence))
