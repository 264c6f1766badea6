"""The cache of adapter weights in Redis.

Weights are stored as bytes. They have a TTL unless their adapter is pinned. Their digest is checked when they are read.
"""

import hashlib
from dataclasses import dataclass
from typing import cast

import redis

from worker.errors import SealBroken, WeightsCorrupt, WeightsMissing
from worker.ledger import names
from worker.ledger.encryption import PLAIN, Cipher


def weights_digest(content: bytes) -> str:
    """Return the sha256 of an adapter's bytes, which records and API answers contain as `digest`."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class SealedWeights:
    """The weights of an adapter as they are stored, and their key in Redis."""

    key: str
    content: bytes


class WeightStore:
    """Stores weights in the cache. Every method raises `redis.RedisError` if the cache cannot be reached.

    Each claim writes under its own fence, a number that no other claim has. So removing weights that a stale worker wrote cannot
    affect the weights that another worker committed. `cipher`: seals and opens the weights, which contain the labels.
    """

    def __init__(self, client: "redis.Redis", cipher: Cipher = PLAIN) -> None:
        self._redis, self._cipher = client, cipher

    def put(self, tenant: str, adapter_id: str, fence: int, content: bytes, ttl_ms: int) -> None:
        sealed = self.sealed(tenant, adapter_id, fence, content)
        self._redis.set(sealed.key, sealed.content, px=ttl_ms)

    def sealed(self, tenant: str, adapter_id: str, fence: int, content: bytes) -> SealedWeights:
        """Return what `put` would store, for `Claims.commit`."""
        key = names.weights(tenant, adapter_id, fence)
        return SealedWeights(key, self._cipher.seal(key, content))

    def get(self, tenant: str, adapter_id: str, fence: int, digest: str) -> bytes:
        """Return the weights of an adapter.

        Raises WeightsMissing if they are not in the cache, and EncryptionKeyMissing if their key is not in ENCRYPTION_KEY_FILE. If
        their sha256 is not `digest`, or they were changed since they were encrypted, removes them from the cache and raises
        WeightsCorrupt.
        """
        key = names.weights(tenant, adapter_id, fence)
        content = cast(bytes | None, self._redis.get(key))
        if content is None:
            raise WeightsMissing(f"the weights of {adapter_id} are no longer in the cache")
        try:
            content = self._cipher.open(key, content)
        except SealBroken:
            content = b""
        if weights_digest(content) != digest:
            self.remove(tenant, adapter_id, fence)
            raise WeightsCorrupt(f"the cached weights of {adapter_id} do not match the digest in the record")
        return content

    def has(self, tenant: str, adapter_id: str, fence: int) -> bool:
        return bool(self._redis.exists(names.weights(tenant, adapter_id, fence)))

    def keep(self, tenant: str, adapter_id: str, fence: int, ttl_ms: int | None) -> bool:
        """Restart the TTL of weights, or remove it if `ttl_ms` is None. Return False if they are gone.

        Weights without a TTL neither expire nor are evicted under the policy `volatile-lru`.
        """
        if ttl_ms is not None:
            return bool(self._redis.pexpire(names.weights(tenant, adapter_id, fence), ttl_ms))
        self._redis.persist(names.weights(tenant, adapter_id, fence))
        return self.has(tenant, adapter_id, fence)

    def remove(self, tenant: str, adapter_id: str, fence: int) -> None:
        self._redis.delete(names.weights(tenant, adapter_id, fence))
