"""The weights of jobs in the cache: write them, adjust their TTL, and discard useless ones."""

import logging

import redis

from worker.draining import DrainTimer
from worker.errors import CacheRefused
from worker.heartbeat import HeldJob
from worker.ledger.claims import Claim, WeightsLifetime
from worker.ledger.weights_cache import WeightStore
from worker.retry import retry_while_unreachable

log = logging.getLogger(__name__)
CACHE_WAIT_SECONDS = 20.0
"""How long a worker retries a cache that cannot be reached before it hands the job back, in seconds."""


class WeightsWriter:
    """Writes weights to a store, each job's under the fence of its claim."""

    def __init__(self, store: WeightStore, draining: DrainTimer) -> None:
        self._store, self._draining = store, draining

    def write(self, job: HeldJob, content: bytes) -> None:
        """Store the weights of a job. Raises CacheRefused, or ClaimLost if the claim was lost during a retry."""
        claim = job.claim
        try:
            retry_while_unreachable(
                lambda: self._store.put(claim.tenant, claim.adapter_id, claim.fence, content, claim.ttl_ms),
                job,
                seconds=CACHE_WAIT_SECONDS,
                draining=self._draining,
            )
        except redis.exceptions.ResponseError as error:
            raise CacheRefused(f"the cache refused the weights: {error}", is_attempt=True) from error
        except redis.RedisError as error:
            raise CacheRefused(f"the cache is out of reach: {type(error).__name__}", is_attempt=False) from error

    def keep(self, claim: Claim, lifetime: WeightsLifetime) -> None:
        """Give stored weights the lifetime in the record, which has changed while the job ran."""
        try:
            self._store.keep(claim.tenant, claim.adapter_id, claim.fence, None if lifetime.pinned else lifetime.ttl_ms)
        except redis.RedisError as error:
            log.warning("the TTL of the weights was not changed: %s", type(error).__name__)

    def discard(self, claim: Claim, fence: int) -> None:
        """Remove the weights that this job stored under a fence.

        If the cache cannot be reached, they stay until their TTL ends.
        """
        try:
            self._store.remove(claim.tenant, claim.adapter_id, fence)
        except redis.RedisError as error:
            log.warning("weights not removed: %s", type(error).__name__)
