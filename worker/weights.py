"""Write the weights of jobs to the cache, adjust their TTL, and discard useless weights."""

import logging

import redis

from worker.draining import DrainTimer
from worker.errors import CacheRefused
from worker.heartbeat import HeldJob
from worker.ledger.claims import Claim, WeightsLifetime
from worker.ledger.weights_cache import WeightStore
from worker.retry import retry_while_unreachable
from worker.watchdog import Watchdog

log = logging.getLogger(__name__)
CACHE_WAIT_SECONDS = 20.0
"""How long a worker retries an unreachable cache before it hands the job back, in seconds."""


class WeightsWriter:
    """Writes the weights of jobs to the cache.

    Each claim writes under its own key, which contains the claim's fence, a number that no other claim has.
    """

    def __init__(self, store: WeightStore, draining: DrainTimer, watchdog: Watchdog) -> None:
        self._store, self._draining, self._watchdog = store, draining, watchdog

    def write(self, job: HeldJob, content: bytes) -> None:
        """Store the weights of a job, and retry while the cache cannot be reached.

        Raises CacheRefused if the cache did not store the weights, and ClaimLost if the claim was lost between two attempts.
        """
        claim = job.claim
        try:
            retry_while_unreachable(
                lambda: self._store.put(claim.tenant, claim.adapter_id, claim.fence, content, claim.ttl_ms),
                job,
                seconds=CACHE_WAIT_SECONDS,
                draining=self._draining,
                watchdog=self._watchdog,
            )
        except redis.exceptions.ResponseError as error:
            raise CacheRefused(f"the cache refused the weights: {error}", is_attempt=True) from error
        except redis.RedisError as error:
            raise CacheRefused(f"the cache is out of reach: {type(error).__name__}", is_attempt=False) from error

    def keep(self, claim: Claim, lifetime: WeightsLifetime) -> None:
        """Set the lifetime of stored weights. Call it if the lifetime in the record changed while the job ran."""
        try:
            self._store.keep(claim.tenant, claim.adapter_id, claim.fence, None if lifetime.pinned else lifetime.ttl_ms)
        except redis.RedisError as error:
            log.warning("the TTL of the weights was not changed: %s", type(error).__name__)

    def discard(self, claim: Claim, fence: int) -> None:
        """Remove the weights of a job that were stored under the given fence.

        If the cache cannot be reached, the weights stay there until their TTL ends.
        """
        try:
            self._store.remove(claim.tenant, claim.adapter_id, fence)
        except redis.RedisError as error:
            log.warning("weights not removed: %s", type(error).__name__)
