"""Heartbeats: a thread extends the lease of a claimed job and reports its progress."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import redis

from worker.ledger.claims import Claim, Claims
from worker.logs import fields

log = logging.getLogger(__name__)
REPORT_SECONDS = 0.05
"""Interval at which the heartbeat thread checks for new support losses to report, in seconds."""
HEARTBEATS_PER_LEASE = 3


@dataclass(frozen=True)
class HeldJob:
    """A job that this worker has claimed, and its state while it runs."""

    claim: Claim
    losses: list[float] = field(default_factory=list)
    """The support loss before each inner step so far."""
    lost: threading.Event = field(default_factory=threading.Event)
    """Set once this worker may no longer run the job, because it was deleted or another worker has claimed it."""
    ended: threading.Event = field(default_factory=threading.Event)
    """Set once the job is finished, which stops its heartbeats."""

    def log_fields(self) -> AbstractContextManager[None]:
        """Return a context manager that adds this job's context (id, tenant, attempt, …) to log lines."""
        claim = self.claim
        return fields(
            adapter=claim.adapter_id, tenant=claim.tenant, attempt=claim.attempt, fence=claim.fence, request=claim.request
        )


@contextmanager
def keep_lease(claims: Claims, claim: Claim, lease_ms: int) -> Iterator[HeldJob]:
    """Send heartbeats for a claimed job from a background thread while the `with` block runs.

    Yields the job's state. The heartbeats stop earlier if the state's `ended` is set or the claim is lost. A heartbeat extends the
    lease by `lease_ms` and stores the support losses so far.
    """
    job = HeldJob(claim)
    thread = threading.Thread(
        target=_send_heartbeats, args=(claims, job, lease_ms), name=f"heartbeat-{claim.adapter_id}", daemon=True
    )
    thread.start()
    try:
        yield job
    finally:
        job.ended.set()
        thread.join()


def _send_heartbeats(claims: Claims, job: HeldJob, lease_ms: int) -> None:
    """Send heartbeats until the job has ended or its claim is lost."""
    pause = lease_ms / 1000 / HEARTBEATS_PER_LEASE
    reported, next_lease = 0, time.monotonic() + pause
    while not job.ended.wait(REPORT_SECONDS):
        if len(job.losses) == reported and time.monotonic() < next_lease:
            continue
        reported, next_lease = len(job.losses), time.monotonic() + pause
        try:
            if not claims.heartbeat(job.claim, lease_ms, job.losses[:reported]):
                job.lost.set()
                return
        except redis.RedisError as error:
            with fields(adapter=job.claim.adapter_id, tenant=job.claim.tenant, fence=job.claim.fence):
                log.warning("heartbeat not delivered: %s", type(error).__name__)
