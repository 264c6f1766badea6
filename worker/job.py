"""Run a job from claim to commit: the weights are written first, then the record, and only if the claim still holds."""

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import redis

from metatrain.errors import DeadlineExceeded, MetatrainError
from worker.draining import DrainTimer
from worker.errors import CacheRefused, ClaimLost, Stopping
from worker.heartbeat import HeldJob, keep_lease
from worker.ledger.claims import WITHOUT_NAME, Claim, Queues
from worker.ledger.messages import Outcome
from worker.ledger.records import Records
from worker.ledger.weights_cache import WeightStore, weights_digest
from worker.logs import places
from worker.passes import PassRunner
from worker.retry import retry_while_away
from worker.runtime import MadeAdapter, Runtime
from worker.settings import WorkerSettings
from worker.weights import WeightsWriter

log = logging.getLogger(__name__)
CACHE_RETRY_MS = 2_000
"""Delay before a job is announced again after the cache did not take its weights, in milliseconds."""


@dataclass
class JobRunner:
    """Runs the jobs of some queues in one worker process. `name`: of the worker, as records show it."""

    name: str
    settings: WorkerSettings
    records: Records
    store: WeightStore
    runtime: Runtime
    queues: Queues = field(default_factory=lambda: WITHOUT_NAME)

    def __post_init__(self) -> None:
        self.draining = DrainTimer(self.settings.drain_seconds)
        self._lease_ms = self.settings.lease_seconds * 1000
        self._passes = PassRunner(self.settings, self.runtime, self.draining)
        self._weights = WeightsWriter(self.store, self.draining)

    def run(self, tenant: str, adapter_id: str) -> None:
        """Claim the job, and waiting ones that can share its pass. End each as ready or failed, or hand it back.

        A job is handed back if the cache does not take its weights now, or the worker stops. Does nothing if the job cannot be
        claimed.

        Raises redis.RedisError if the records stay out of reach. The record then still says `running`, and another worker claims
        it once the lease has run out.
        """
        claim = self._claim(tenant, adapter_id)
        if claim is not None:
            self._end([claim, *self._claim_for_same_pass(claim)])

    def _claim(self, tenant: str, adapter_id: str) -> Claim | None:
        return self.records.claims.claim(
            tenant, adapter_id, lease_ms=self._lease_ms, attempts=self.settings.attempts, worker=self.name, queues=self.queues
        )

    def _claim_for_same_pass(self, first: Claim) -> list[Claim]:
        """Claim waiting jobs that can share a pass with this one."""
        most = self._passes.room_beside(first)
        if most < 1:
            return []
        more: list[Claim] = []
        try:
            for tenant, adapter_id in self.records.waiting.for_pass(first.recipe.pass_key, most):
                claim = self._claim(tenant, adapter_id)
                more += [] if claim is None else [claim]
        except Exception as error:  # whatever it is, those that are held already are not left alone
            log.warning("no more jobs for this pass: %s", type(error).__name__)
        return more

    def _end(self, claims: Sequence[Claim]) -> None:
        """Run claimed jobs to their end. Everything that may take time is done while heartbeats keep the leases."""
        with ExitStack() as stack:
            jobs = [stack.enter_context(keep_lease(self.records.claims, claim, self._lease_ms)) for claim in claims]
            for job in jobs:
                if job.claim.previous_fence:
                    with job.log_fields():
                        self._weights.discard(job.claim, job.claim.previous_fence)
            problems: list[Exception] = []
            made: list[tuple[Outcome, MadeAdapter]] = []
            for job, result in zip(jobs, self._passes.adapt(jobs), strict=True):
                try:
                    with job.log_fields():
                        made += self._end_one(job, result)
                except Exception as error:  # the others of the pass must not be left as they are for it
                    problems.append(error)
                finally:
                    job.ended.set()
        self._count_times(made)
        if problems:
            raise problems[0]

    def _end_one(self, job: HeldJob, result: MadeAdapter | Exception) -> list[tuple[Outcome, MadeAdapter]]:
        """Commit a job or hand it back. Return its outcome and adapter if it was adapted and committed."""
        claim = job.claim
        try:
            outcome = self._outcome(job, result)
            lifetime = retry_while_away(
                lambda: self.records.claims.commit(claim, outcome), job, seconds=self.settings.job_seconds, draining=self.draining
            )
        except ClaimLost:
            self._lost(claim)
            return []
        except Stopping:
            self._hand_back(job, "its worker was stopped", delay_ms=0, counts=False)
            return []
        except CacheRefused as refusal:
            self._weights.discard(claim, claim.fence)
            self._hand_back(job, str(refusal), delay_ms=CACHE_RETRY_MS, counts=refusal.counts)
            return []
        if lifetime is None:
            self._lost(claim)
            return []
        log.info(outcome.status)
        if outcome.status == "ready" and (lifetime.pinned or lifetime.ttl_ms != claim.ttl_ms):
            self._weights.keep(claim, lifetime)
        return [] if isinstance(result, Exception) else [(outcome, result)]

    def _outcome(self, job: HeldJob, result: MadeAdapter | Exception) -> Outcome:
        """Store the weights of a job that was adapted, and return how it ended. Raises ClaimLost, Stopping and CacheRefused."""
        if isinstance(result, ClaimLost | Stopping):
            raise result
        if isinstance(result, Exception):
            failed = self._failed(job, result)
            if job.lost.is_set():
                raise ClaimLost
            return failed
        if job.lost.is_set():
            raise ClaimLost
        return self._stored(job, result)

    def _failed(self, job: HeldJob, error: Exception) -> Outcome:
        """Return the outcome of a failed job. Its reason goes to the record, not to the log: it may quote an input."""
        losses = tuple(job.losses)
        if not isinstance(error, MetatrainError):
            # Its message may quote the support set, so only the type leaves the worker's log of this traceback.
            log.error("internal error\n%s", places(error))
            return Outcome(status="failed", error=f"internal error: {type(error).__name__}", support_loss=losses)
        log.warning("%s, the reason is in the record", type(error).__name__)
        limit = f" (JOB_SECONDS is {self.settings.job_seconds:g})" if isinstance(error, DeadlineExceeded) else ""
        return Outcome(status="failed", error=f"{error}{limit}", support_loss=losses)

    def _stored(self, job: HeldJob, made: MadeAdapter) -> Outcome:
        """Store the weights, and return the outcome of a job that is ready."""
        began = time.perf_counter()
        self._weights.write(job, made.content)
        store_ms = 1e3 * (time.perf_counter() - began)
        return Outcome(
            status="ready",
            digest=weights_digest(made.content),
            size=len(made.content),
            support_loss=made.support_loss,
            timings={"queue": float(job.claim.waited_ms), **made.timings, "store": store_ms},
        )

    def _lost(self, claim: Claim) -> None:
        self._weights.discard(claim, claim.fence)
        log.warning("commit refused: the claim no longer holds")

    def _hand_back(self, job: HeldJob, reason: str, *, delay_ms: int, counts: bool) -> None:
        """Queue the job again for any worker."""
        held = retry_while_away(
            lambda: self.records.claims.hand_back(job.claim, reason, delay_ms=delay_ms, counts=counts),
            job,
            seconds=self.settings.job_seconds,
            draining=self.draining,
        )
        if held:
            log.warning("handed back: %s", reason)
        else:
            log.warning("not handed back (%s): the claim no longer holds", reason)

    def _count_times(self, made: Sequence[tuple[Outcome, MadeAdapter]]) -> None:
        """Count the times of the jobs of a pass. Its inner steps are counted once: those of the job that took most."""
        if not made:
            return
        stages = {stage: [outcome.timings[stage] for outcome, _ in made] for stage in made[0][0].timings}
        steps = max((adapter.steps_ms for _, adapter in made), key=len)
        try:
            self.records.counts.observe({**stages, "inner_step": steps})
        except redis.RedisError as error:
            log.warning("the times of %d jobs are not counted: %s", len(made), type(error).__name__)
