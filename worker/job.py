"""Run jobs from claim to commit.

A worker first stores the weights in the cache, then commits the result to the job's record. If both are on one server, it does both
in one step. The commit is refused if the worker no longer holds the claim, because another worker has claimed the job or it was
deleted.
"""

import logging
import time
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

import redis

from metatrain.errors import DeadlineExceeded, MetatrainError
from worker.draining import DrainTimer
from worker.errors import CacheRefused, ClaimLost, Stopping
from worker.heartbeat import HeldJob, keep_lease
from worker.ledger.claims import UNNAMED_QUEUE, Claim, Claimant, Queues, WeightsLifetime
from worker.ledger.messages import Outcome
from worker.ledger.records import Records
from worker.ledger.weights_cache import SealedWeights, WeightStore, weights_digest
from worker.logs import places
from worker.pass_times import PassTimes
from worker.passes import OnResult, PassRunner
from worker.retry import retry_while_unreachable
from worker.runtime import MadeAdapter, Runtime
from worker.settings import WorkerSettings
from worker.watchdog import Watchdog
from worker.weights import WeightsWriter

log = logging.getLogger(__name__)
CACHE_RETRY_MS = 2_000
"""Delay before a job is retried after the cache did not store its weights, in milliseconds."""


@dataclass
class JobRunner:
    """Runs the jobs of `queues` in one worker process.

    `name`: the worker's name, stored in the record of each job that it claims. `one_server`: True if `store` is on the server of
    the records. Weights and record are then written in one step, so that the disk is waited for once.
    """

    name: str
    settings: WorkerSettings
    records: Records
    store: WeightStore
    runtime: Runtime
    queues: Queues = field(default_factory=lambda: UNNAMED_QUEUE)
    one_server: bool = False

    def __post_init__(self) -> None:
        self.draining = DrainTimer(self.settings.drain_seconds)
        self._lease_ms = self.settings.lease_seconds * 1000
        self._claimant = Claimant(self.name, self._lease_ms, self.settings.attempts, self.queues)
        self.watchdog = Watchdog(self.settings.hang_seconds)
        self.times = PassTimes(self.records)
        self._passes = PassRunner(self.settings, self.runtime, self.draining, self.watchdog)
        self._weights = WeightsWriter(self.store, self.draining, self.watchdog)
        self._held: Sequence[HeldJob] = ()

    def run(self, tenant: str, adapter_id: str) -> None:
        """Claim the job whose turn it is, claim waiting jobs that can share its pass, and run them.

        A pass is one batched inner loop. `tenant` and `adapter_id` name the job of the wake-up. Each claimed job ends as ready or
        failed, or is handed back to the queue if the cache does not store its weights or the worker stops. Does nothing if no job
        can be claimed.

        Raises redis.RedisError if the records server cannot be reached for too long. A claimed job then keeps the status `running`
        until its lease expires and another worker claims it.
        """
        claim = self.records.claims.claim_in_turn(tenant, adapter_id, self._claimant)
        if claim is not None:
            self._run_claimed([claim, *self._claim_for_same_pass(claim)])

    def _claim_for_same_pass(self, first: Claim) -> list[Claim]:
        """Claim waiting jobs that can share a pass with the claimed job `first`, and return their claims.

        Each tenant gets at most as many places in the pass as the tenant of `first` has jobs. So a tenant with one job does not
        wait for a pass full of another's jobs, and many tenants with one job each still share a pass.
        """
        more: list[Claim] = []
        try:
            for _ in range(self._passes.spare_places(first)):
                places = Counter(claim.tenant for claim in (first, *more))
                full = [tenant for tenant, number in places.items() if number > first.waiting]
                claim = self.records.claims.claim_for_pass(first, self._claimant, full)
                if claim is None:
                    break
                more.append(claim)
        except Exception as error:  # the jobs that are already claimed must run, whatever the error
            log.warning("no more jobs claimed for this pass: %s", type(error).__name__)
        return more

    def _run_claimed(self, claims: Sequence[Claim]) -> None:
        """Run claimed jobs to their end. Heartbeats extend their leases meanwhile.

        A thread commits each job as soon as its inner loop has ended, while the others of its pass continue. So no step of theirs
        waits for Redis.
        """
        began = time.perf_counter()
        with ExitStack() as stack:
            jobs = [stack.enter_context(keep_lease(self.records.claims, claim, self._lease_ms)) for claim in claims]
            self._held = jobs
            for job in jobs:
                if job.claim.previous_fence:
                    with job.log_fields():
                        self._weights.discard(job.claim, job.claim.previous_fence)
            ended: list[Future[list[tuple[Outcome, MadeAdapter]]]] = []
            with ThreadPoolExecutor(1, thread_name_prefix="commit") as commits:
                self._adapt(jobs, lambda job, result: ended.append(commits.submit(self._end, job, result)))
        errors = [error for future in ended if (error := future.exception()) is not None]
        self._count_times([each for future in ended if future.exception() is None for each in future.result()])
        self._measure_pass(claims, 1e3 * (time.perf_counter() - began))
        if errors:  # raised only now, because the other jobs of the pass had to be finished
            raise errors[0]

    def _adapt(self, jobs: Sequence[HeldJob], on_result: OnResult) -> None:
        """Load the initializations of claimed jobs, and run their inner loops.

        Calls `on_result` once for each job. Heartbeats keep the leases meanwhile. Raises redis.RedisError if a stored
        initialization stays out of reach.
        """
        loaded = []
        for job in jobs:
            try:
                with job.log_fields():
                    self._load_initialization(job)
                loaded.append(job)
            except (ClaimLost, Stopping) as stop:
                on_result(job, stop)
        self._passes.adapt(loaded, on_result)

    def _load_initialization(self, job: HeldJob) -> None:
        """Load the initialization of a job, unless it is in memory.

        Raises ClaimLost, Stopping and redis.RedisError.
        """
        retry_while_unreachable(
            lambda: self.runtime.load_initialization(job.claim.recipe),
            job,
            seconds=self.settings.job_seconds,
            draining=self.draining,
            watchdog=self.watchdog,
        )

    def hand_back_hung(self, hanging: Collection[HeldJob], reason: str) -> None:
        """Stop the heartbeats of all claimed jobs, and queue them again, because this worker hangs.

        It uses up an attempt of the jobs in the work that hangs, and none of jobs that only wait for it. The next attempt of the
        first ones runs alone.
        """
        unfinished = [job for job in self._held if not job.ended.is_set()]
        for job in unfinished:
            job.ended.set()
        for job in unfinished:
            is_attempt = any(job is each for each in hanging)
            try:
                self.records.claims.hand_back(job.claim, reason, delay_ms=0, is_attempt=is_attempt)
            except redis.RedisError as error:  # the others can still be handed back; this one waits for the end of its lease
                with job.log_fields():
                    log.warning("not handed back: %s", type(error).__name__)

    def _end(self, job: HeldJob, result: MadeAdapter | Exception) -> list[tuple[Outcome, MadeAdapter]]:
        """Finish a job as `_finish` does, and stop its heartbeats."""
        try:
            with job.log_fields():
                return self._finish(job, result)
        finally:
            job.ended.set()

    def _finish(self, job: HeldJob, result: MadeAdapter | Exception) -> list[tuple[Outcome, MadeAdapter]]:
        """Commit a job to its record, or hand it back to the queue.

        Returns [(outcome, adapter)] if an adapter was committed, otherwise an empty list.
        """
        claim = job.claim
        try:
            outcome, weights = self._outcome(job, result)
            lifetime = retry_while_unreachable(
                lambda: self._commit(claim, outcome, weights),
                job,
                seconds=self.settings.job_seconds,
                draining=self.draining,
                watchdog=self.watchdog,
            )
        except ClaimLost:
            self._discard_lost(claim)
            return []
        except Stopping:
            self._hand_back(job, "its worker was stopped", delay_ms=0, is_attempt=False)
            return []
        except CacheRefused as refusal:
            self._weights.discard(claim, claim.fence)
            self._hand_back(job, str(refusal), delay_ms=CACHE_RETRY_MS, is_attempt=refusal.is_attempt)
            return []
        if lifetime is None:
            self._discard_lost(claim)
            return []
        log.info(outcome.status)
        if outcome.status == "ready" and weights is None and (lifetime.pinned or lifetime.ttl_ms != claim.ttl_ms):
            self._weights.keep(claim, lifetime)
        return [] if isinstance(result, Exception) else [(outcome, result)]

    def _commit(self, claim: Claim, outcome: Outcome, weights: SealedWeights | None) -> WeightsLifetime | None:
        """Commit a job, and store `weights` in the same step.

        Raises CacheRefused if the server has no memory for them.
        """
        if weights is None:
            return self.records.claims.commit(claim, outcome)
        try:
            return self.records.claims.commit(claim, outcome, weights)
        except redis.exceptions.OutOfMemoryError as error:
            raise CacheRefused(f"the cache refused the weights: {error}", is_attempt=True) from error

    def _outcome(self, job: HeldJob, result: MadeAdapter | Exception) -> tuple[Outcome, SealedWeights | None]:
        """Store the weights of a job if its result is an adapter. Return its outcome.

        The second value is the weights that the commit has to store; None if there are none or they are stored already.
        Raises ClaimLost if another worker has claimed the job or it was deleted, Stopping if the worker shut down before the result
        was complete, and CacheRefused if the cache did not store the weights.
        """
        if isinstance(result, ClaimLost | Stopping):
            raise result
        if isinstance(result, Exception):
            failed = self._failed_outcome(job, result)
            if job.lost.is_set():
                raise ClaimLost
            return failed, None
        if job.lost.is_set():
            raise ClaimLost
        return self._store_weights(job, result)

    def _failed_outcome(self, job: HeldJob, error: Exception) -> Outcome:
        """Return the outcome of a failed job.

        The reason is stored in the record and is not logged, because it may quote an input.
        """
        losses = tuple(job.losses)
        if not isinstance(error, MetatrainError):
            # The message may quote the support set. So the record gets only the error's type, and the log its type and traceback.
            log.error("internal error\n%s", places(error))
            return Outcome(status="failed", error=f"internal error: {type(error).__name__}", support_loss=losses)
        log.warning("failed with %s, the reason is in the record", type(error).__name__)
        limit = f" (JOB_SECONDS is {self.settings.job_seconds:g})" if isinstance(error, DeadlineExceeded) else ""
        return Outcome(status="failed", error=f"{error}{limit}", support_loss=losses)

    def _store_weights(self, job: HeldJob, made: MadeAdapter) -> tuple[Outcome, SealedWeights | None]:
        """Store the weights of a job, or only prepare them to be stored with the commit.

        Returns an outcome with the status `ready`, and the prepared weights.
        """
        claim, began, weights = job.claim, time.perf_counter(), None
        digest = weights_digest(made.content)
        if self.one_server:
            weights = self.store.sealed(claim.tenant, claim.adapter_id, claim.fence, made.content)
        else:
            self._weights.write(job, made.content)
        store_ms = 1e3 * (time.perf_counter() - began)
        used, gain = made.label_words or (None, None)
        outcome = Outcome(
            status="ready",
            digest=digest,
            size=len(made.content),
            support_loss=made.support_loss,
            timings={"queue": float(claim.waited_ms), **made.timings, "store": store_ms},
            label_words_used=used,
            label_words_gain=gain,
        )
        return outcome, weights

    def _discard_lost(self, claim: Claim) -> None:
        self._weights.discard(claim, claim.fence)
        log.warning("commit refused: the claim no longer holds")

    def _hand_back(self, job: HeldJob, reason: str, *, delay_ms: int, is_attempt: bool) -> None:
        """Queue the job again after `delay_ms`, so that any worker can claim it.

        `is_attempt`: True if the run so far uses up one of the job's attempts.
        """
        held = retry_while_unreachable(
            lambda: self.records.claims.hand_back(job.claim, reason, delay_ms=delay_ms, is_attempt=is_attempt),
            job,
            seconds=self.settings.job_seconds,
            draining=self.draining,
            watchdog=self.watchdog,
        )
        if held:
            log.warning("handed back: %s", reason)
        else:
            log.warning("not handed back (%s): the claim no longer holds", reason)

    def _count_times(self, committed: Sequence[tuple[Outcome, MadeAdapter]]) -> None:
        """Add the stage durations of the jobs in one pass to the histograms for `/metrics`.

        All jobs of the pass share the inner steps. So each step's duration is added only once, from the job with the most steps.
        """
        if not committed:
            return
        stages = {stage: [outcome.timings[stage] for outcome, _ in committed] for stage in committed[0][0].timings}
        steps = max((adapter.steps_ms for _, adapter in committed), key=len)
        self.times.add_stages({**stages, "inner_step": steps})

    def _measure_pass(self, claims: Sequence[Claim], pass_ms: float) -> None:
        """Add the duration of a pass to the average from which the wait in its queue is estimated."""
        if self.runtime.known.in_memory(claims[0].recipe.initialization_digest) is None:
            return  # this worker could not run the job, so the time says nothing
        self.times.add_pass(claims[0].queue, pass_ms / len(claims))
