"""Write the weights of a job to the cache, keep them as long as the record says, and remove useless ones."""

import logging

import redis

from worker.draining import DrainTimer
from worker.errors import CacheRefused
from worker.heartbeat import HeldJob
from worker.ledger.claims import Claim, WeightsLifetime
from worker.ledger.weights_cache import WeightStore
from worker.retry import retry_while_away

log = logging.getLogger(__name__)
CACHE_WAIT_SECONDS = 20.0
"""How long a worker waits for a cache that is away before it hands the job back."""


class WeightsWriter:
    """Write weights to a store under the fences of claims."""

    def __init__(self, store: WeightStore, draining: DrainTimer) -> None:
        self._store, self._draining = store, draining

    def write(self, job: HeldJob, content: bytes) -> None:
        """Store the weights. Raises CacheRefused, and ClaimLost."""
        claim = job.claim
        try:
            retry_while_away(
                lambda: self._store.put(claim.tenant, claim.adapter_id, claim.fence, content, claim.ttl_ms),
                job,
                seconds=CACHE_WAIT_SECONDS,
                draining=self._draining,
            )
        except redis.exceptions.ResponseError as error:
            raise CacheRefused(f"the cache refused the weights: {error}", counts=True) from error
        except redis.RedisError as error:
            raise CacheRefused(f"the cache is out of reach: {type(error).__name__}", counts=False) from error

    def keep(self, claim: Claim, lifetime: WeightsLifetime) -> None:
        """Change the TTL of stored weights: the record was pinned, or given another TTL, while the job ran."""
        try:
            self._store.keep(claim.tenant, claim.adapter_id, claim.fence, None if lifetime.pinned else lifetime.ttl_ms)
        except redis.RedisError as error:
            log.warning("the weights keep the TTL that they had: %s", type(error).__name__)

    def discard(self, claim: Claim, fence: int) -> None:
        """Remove what was stored under a fence of this job. If the cache cannot be reached, the TTL will remove it."""
        try:
            self._store.remove(claim.tenant, claim.adapter_id, fence)
        except redis.RedisError as error:
            log.warning("weights not removed: %s", type(error).__name__)
