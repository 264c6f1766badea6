"""Adapter weights in Redis: bytes in, bytes out, a TTL on all that are not pinned, the digest checked on the way out. Torch-
free."""

import hashlib
from typing import cast

import redis

from worker.errors import WeightsCorrupt, WeightsMissing


def weights_digest(content: bytes) -> str:
    """sha256 of an adapter's bytes, as records and answers state it."""
    return hashlib.sha256(content).hexdigest()


class WeightStore:
    """Each claim writes under its own fence, so removing what a stale worker wrote cannot touch what another one committed.

    Every method may raise `redis.RedisError` where the cache is out of reach.
    """

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client

    def put(self, tenant: str, adapter_id: str, fence: int, content: bytes, ttl_ms: int) -> None:
        self._redis.set(_key(tenant, adapter_id, fence), content, px=ttl_ms)

    def get(self, tenant: str, adapter_id: str, fence: int, digest: str) -> bytes:
        """Raises WeightsMissing, and WeightsCorrupt (the entry is discarded) where the bytes are not those of `digest`."""
        content = cast(bytes | None, self._redis.get(_key(tenant, adapter_id, fence)))
        if content is None:
            raise WeightsMissing(f"the weights of {adapter_id} are no longer cached")
        if weights_digest(content) != digest:
            self.remove(tenant, adapter_id, fence)
            raise WeightsCorrupt(f"the cached weights of {adapter_id} do not have the digest on record")
        return content

    def has(self, tenant: str, adapter_id: str, fence: int) -> bool:
        return bool(self._redis.exists(_key(tenant, adapter_id, fence)))

    def keep(self, tenant: str, adapter_id: str, fence: int, ttl_ms: int | None) -> bool:
        """Start the TTL anew, or with None take it off: they then neither expire nor can be evicted by `volatile-lru`. False
        where the weights are gone."""
        if ttl_ms is not None:
            return bool(self._redis.pexpire(_key(tenant, adapter_id, fence), ttl_ms))
        self._redis.persist(_key(tenant, adapter_id, fence))
        return self.has(tenant, adapter_id, fence)

    def remove(self, tenant: str, adapter_id: str, fence: int) -> None:
        self._redis.delete(_key(tenant, adapter_id, fence))


def _key(tenant: str, adapter_id: str, fence: int) -> str:
    return f"qs:{tenant}:weights:{adapter_id}:{fence}"
