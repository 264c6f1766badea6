"""A job from claim to commit: the weights are written first, then the record, and only if the claim still holds."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import redis

from metatrain.errors import MetatrainError
from worker.errors import ClaimLost
from worker.messages import Outcome
from worker.records import Claim, Records
from worker.runtime import Runtime
from worker.settings import WorkerSettings
from worker.store import WeightStore, weights_digest

log = logging.getLogger(__name__)


class Progress:
    """Support losses so far. As the inner loop's `on_step` it stops a job whose claim is lost: deleted, or taken over."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.lost = threading.Event()

    def __call__(self, _step: int, loss: float) -> None:
        self.losses.append(loss)
        if self.lost.is_set():
            raise ClaimLost


@dataclass
class Hands:
    """What one worker process works with."""

    name: str
    settings: WorkerSettings
    records: Records
    store: WeightStore
    runtime: Runtime

    def run(self, tenant: str, adapter_id: str) -> None:
        """Claim the job and end it as ready or failed. Does nothing where there is nothing to claim.

        Raises redis.RedisError where Redis goes away meanwhile: the record then still says `running`, and is taken up again once
        the lease has run out.
        """
        lease_ms = self.settings.lease_seconds * 1000
        claim = self.records.claim(tenant, adapter_id, lease_ms=lease_ms, attempts=self.settings.attempts, worker=self.name)
        if claim is None:
            return
        try:
            with self._heartbeat(claim, lease_ms) as progress:
                outcome = self._outcome(claim, progress)
            committed = self.records.commit(claim, outcome)
        except ClaimLost:
            committed = False
        if committed:
            log.info("adapter=%s tenant=%s fence=%d %s", adapter_id, tenant, claim.fence, outcome.status)
        else:
            self.store.remove(tenant, adapter_id, claim.fence)
            log.warning("adapter=%s tenant=%s fence=%d commit refused: the claim no longer holds", adapter_id, tenant, claim.fence)

    def _outcome(self, claim: Claim, progress: "Progress") -> Outcome:
        deadline, losses = time.monotonic() + self.settings.job_seconds, progress.losses
        try:
            product = self.runtime.adapt(claim.recipe, deadline=deadline, on_step=progress)
            stored = time.perf_counter()
            self.store.put(claim.tenant, claim.adapter_id, claim.fence, product.content, claim.ttl_ms)
        except MetatrainError as error:
            return Outcome(status="failed", error=str(error), support_loss=tuple(losses))
        except redis.exceptions.ResponseError as error:
            return Outcome(status="failed", error=f"the cache refused the weights: {error}", support_loss=tuple(losses))
        except (redis.RedisError, ClaimLost):
            raise
        except Exception as error:
            # Its message may quote the support set, so only the type leaves the worker's log of this traceback.
            log.exception("adapter=%s tenant=%s fence=%d", claim.adapter_id, claim.tenant, claim.fence)
            return Outcome(status="failed", error=f"internal error: {type(error).__name__}", support_loss=tuple(losses))
        timings = {"queue": float(claim.waited_ms), **product.timings, "store": 1e3 * (time.perf_counter() - stored)}
        digest = weights_digest(product.content)
        return Outcome(status="ready", digest=digest, support_loss=product.support_loss, timings=timings)

    @contextmanager
    def _heartbeat(self, claim: Claim, lease_ms: int) -> Iterator["Progress"]:
        """Keep the lease and publish the support loss from a thread while the block runs; note when the claim is lost."""
        progress = Progress()
        losses = progress.losses
        done = threading.Event()

        def beat() -> None:
            reported = 0
            next_lease = time.monotonic() + lease_ms / 3000
            while not done.wait(0.05):
                if len(losses) == reported and time.monotonic() < next_lease:
                    continue
                reported, next_lease = len(losses), time.monotonic() + lease_ms / 3000
                try:
                    if not self.records.heartbeat(claim, lease_ms, losses[:reported]):
                        progress.lost.set()
                        return
                except redis.RedisError as error:
                    log.warning("adapter=%s heartbeat not delivered: %s", claim.adapter_id, type(error).__name__)

        thread = threading.Thread(target=beat, name=f"heartbeat-{claim.adapter_id}", daemon=True)
        thread.start()
        try:
            yield progress
        finally:
            done.set()
            thread.join()
