"""A job from claim to commit: the weights are written first, then the record, and only if the claim still holds."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import redis

from metatrain.errors import DeadlineExceeded, MetatrainError
from worker.errors import ClaimLost, Stopping
from worker.logs import fields, places
from worker.messages import Outcome
from worker.records import Claim, Kept, Records
from worker.runtime import Runtime
from worker.settings import WorkerSettings
from worker.store import WeightStore, weights_digest

log = logging.getLogger(__name__)
_AGAIN_MS = 2_000
"""How long a job waits whose weights the cache did not take."""
_CACHE_SECONDS = 20.0
"""How long a worker waits for a cache that is away, before another job is given a chance."""
T = TypeVar("T")


class _CacheRefused(Exception):
    def __init__(self, reason: str, *, counts: bool) -> None:
        super().__init__(reason)
        self.counts = counts


class Progress:
    """Support losses so far. As the inner loop's `on_step` it stops a job whose claim is lost (deleted, or taken over), and one
    whose worker was told to stop more than `drain_seconds` ago."""

    def __init__(self, draining: "Draining") -> None:
        self.losses: list[float] = []
        self.lost = threading.Event()
        self._draining = draining

    def __call__(self, _step: int, loss: float) -> None:
        self.losses.append(loss)
        if self.lost.is_set():
            raise ClaimLost
        if self._draining.over():
            raise Stopping


class Draining:
    """Whether the worker has been told to stop, and how long its job may still go on."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until = math.inf

    def begin(self) -> None:
        self._until = min(self._until, time.monotonic() + self._seconds)

    def over(self) -> bool:
        return time.monotonic() > self._until


@dataclass
class Hands:
    """What one worker process works with."""

    name: str
    settings: WorkerSettings
    records: Records
    store: WeightStore
    runtime: Runtime

    def __post_init__(self) -> None:
        self.draining = Draining(self.settings.drain_seconds)

    def run(self, tenant: str, adapter_id: str) -> None:
        """Claim the job and end it as ready or failed, or hand it back: where the cache takes no weights now, or the worker stops.
        Does nothing where there is nothing to claim.

        Raises redis.RedisError where the records stay out of reach: the record then still says `running`, and is taken up again
        once the lease has run out.
        """
        lease_ms = self.settings.lease_seconds * 1000
        claim = self.records.claim(tenant, adapter_id, lease_ms=lease_ms, attempts=self.settings.attempts, worker=self.name)
        if claim is None:
            return
        with fields(adapter=adapter_id, tenant=tenant, attempt=claim.attempt, fence=claim.fence, request=claim.request):
            self._end(claim, lease_ms)

    def _end(self, claim: Claim, lease_ms: int) -> None:
        """Everything that may take time is done while the heartbeat keeps the job."""
        with self._heartbeat(claim, lease_ms) as progress:
            if claim.before:
                self._discard(claim, claim.before)
            try:
                outcome = self._outcome(claim, progress)
                kept = self._until_back(lambda: self.records.commit(claim, outcome), progress)
            except ClaimLost:
                self._lost(claim)
                return
            except Stopping:
                self._hand_back(claim, progress, "its worker was stopped", delay_ms=0, counts=False)
                return
            except _CacheRefused as refusal:
                self._discard(claim, claim.fence)
                self._hand_back(claim, progress, str(refusal), delay_ms=_AGAIN_MS, counts=refusal.counts)
                return
            if kept is None:
                self._lost(claim)
                return
        log.info(outcome.status)
        if outcome.status == "ready" and (kept.pinned or kept.ttl_ms != claim.ttl_ms):
            self._keep(claim, kept)

    def _lost(self, claim: Claim) -> None:
        self._discard(claim, claim.fence)
        log.warning("commit refused: the claim no longer holds")

    def _hand_back(self, claim: Claim, progress: "Progress", reason: str, *, delay_ms: int, counts: bool) -> None:
        if self._until_back(lambda: self.records.hand_back(claim, reason, delay_ms=delay_ms, counts=counts), progress):
            log.warning("handed back: %s", reason)
        else:
            log.warning("not handed back (%s): the claim no longer holds", reason)

    def _outcome(self, claim: Claim, progress: "Progress") -> Outcome:
        deadline, losses = time.monotonic() + self.settings.job_seconds, progress.losses
        try:
            product = self.runtime.adapt(claim.recipe, deadline=deadline, on_step=progress)
        except MetatrainError as error:
            log.warning("%s, the reason is in the record", type(error).__name__)  # and not here: it may quote an input
            limit = f" (JOB_SECONDS is {self.settings.job_seconds:g})" if isinstance(error, DeadlineExceeded) else ""
            return Outcome(status="failed", error=f"{error}{limit}", support_loss=tuple(losses))
        except (ClaimLost, Stopping):
            raise
        except Exception as error:
            # Its message may quote the support set, so only the type leaves the worker's log of this traceback.
            log.error("internal error\n%s", places(error))
            return Outcome(status="failed", error=f"internal error: {type(error).__name__}", support_loss=tuple(losses))
        stored = time.perf_counter()
        self._store(claim, product.content, progress)
        timings = {"queue": float(claim.waited_ms), **product.timings, "store": 1e3 * (time.perf_counter() - stored)}
        digest = weights_digest(product.content)
        return Outcome(status="ready", digest=digest, support_loss=product.support_loss, timings=timings)

    def _store(self, claim: Claim, content: bytes, progress: "Progress") -> None:
        """Raises _CacheRefused: an attempt where the cache says no, none where it stays out of reach; and ClaimLost."""
        try:
            self._until_back(
                lambda: self.store.put(claim.tenant, claim.adapter_id, claim.fence, content, claim.ttl_ms), progress, _CACHE_SECONDS
            )
        except redis.exceptions.ResponseError as error:
            raise _CacheRefused(f"the cache refused the weights: {error}", counts=True) from error
        except redis.RedisError as error:
            raise _CacheRefused(f"the cache is out of reach: {type(error).__name__}", counts=False) from error

    def _until_back(self, ask: Callable[[], T], progress: "Progress", seconds: float | None = None) -> T:
        """Ask a server that may be away for a while (`JOB_SECONDS` where nothing else is said): what was computed is not thrown
        away for a restart. Raises ClaimLost where the job is another's meanwhile, and redis.RedisError in the end."""
        until = time.monotonic() + (self.settings.job_seconds if seconds is None else seconds)
        while True:
            try:
                return ask()
            except redis.exceptions.ResponseError:
                raise
            except redis.RedisError as error:
                if time.monotonic() > until or self.draining.over():
                    raise
                if progress.lost.is_set():
                    raise ClaimLost from error
                log.warning("%s, trying again", type(error).__name__)
                time.sleep(0.25)

    def _keep(self, claim: Claim, kept: Kept) -> None:
        """The record was pinned, or given another TTL, while the job ran."""
        try:
            self.store.keep(claim.tenant, claim.adapter_id, claim.fence, None if kept.pinned else kept.ttl_ms)
        except redis.RedisError as error:
            log.warning("the weights keep the TTL that they had: %s", type(error).__name__)

    def _discard(self, claim: Claim, fence: int) -> None:
        """Remove what was stored under a fence of this job; where the cache is out of reach, its TTL does."""
        try:
            self.store.remove(claim.tenant, claim.adapter_id, fence)
        except redis.RedisError as error:
            log.warning("weights not removed: %s", type(error).__name__)

    @contextmanager
    def _heartbeat(self, claim: Claim, lease_ms: int) -> Iterator["Progress"]:
        """Keep the lease and publish the support loss from a thread while the block runs; note when the claim is lost."""
        progress = Progress(self.draining)
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
                    with fields(adapter=claim.adapter_id, tenant=claim.tenant, fence=claim.fence):
                        log.warning("heartbeat not delivered: %s", type(error).__name__)

        thread = threading.Thread(target=beat, name=f"heartbeat-{claim.adapter_id}", daemon=True)
        thread.start()
        try:
            yield progress
        finally:
            done.set()
            thread.join()
