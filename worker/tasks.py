"""A job from claim to commit: the weights are written first, then the record, and only if the claim still holds."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import redis

from metatrain.errors import DeadlineExceeded, MetatrainError
from worker.errors import ClaimLost, Stopping
from worker.ledger.claims import Claim, Queues, WeightsLifetime
from worker.ledger.messages import Outcome
from worker.ledger.records import Records
from worker.ledger.store import WeightStore, weights_digest
from worker.logs import fields, places
from worker.runtime import MadeAdapter, Runtime
from worker.settings import WorkerSettings

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
    """Of one job: the support losses so far, whether its claim is lost (deleted, or taken over), and whether it has ended."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.lost, self.ended = threading.Event(), threading.Event()


def _of(claim: Claim) -> AbstractContextManager[None]:
    """Log lines say whose they are."""
    return fields(adapter=claim.adapter_id, tenant=claim.tenant, attempt=claim.attempt, fence=claim.fence, request=claim.request)


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
    queues: Queues = field(default_factory=lambda: {"": ()})

    def __post_init__(self) -> None:
        self.draining = Draining(self.settings.drain_seconds)

    def run(self, tenant: str, adapter_id: str) -> None:
        """Claim the job, and others of its kin that wait; end each as ready or failed, or hand it back: where the cache takes no
        weights now, or the worker stops. Does nothing where there is nothing to claim.

        Raises redis.RedisError where the records stay out of reach: the record then still says `running`, and is taken up again
        once the lease has run out.
        """
        claim = self._claim(tenant, adapter_id)
        if claim is not None:
            self._end([claim, *self._mates(claim)])

    def _claim(self, tenant: str, adapter_id: str) -> Claim | None:
        lease_ms = self.settings.lease_seconds * 1000
        return self.records.claims.claim(
            tenant, adapter_id, lease_ms=lease_ms, attempts=self.settings.attempts, worker=self.name, queues=self.queues
        )

    def _mates(self, claim: Claim) -> list[Claim]:
        """Jobs that can run in one pass with this one. All at their first attempt, and not the only one: what cost a worker before
        may cost another one, and must not cost it others' jobs."""
        fit = self.settings.pass_rows // 2 ** claim.recipe.rows.bit_length()
        most = min(self.settings.jobs_together, fit) - 1
        if most < 1 or claim.attempt > 1 or self.settings.attempts == 1 or not self.runtime.together(claim.recipe):
            return []
        mates: list[Claim] = []
        try:
            for tenant, adapter_id in self.records.waiting.for_pass(claim.recipe.kin, most):
                mate = self._claim(tenant, adapter_id)
                mates += [] if mate is None else [mate]
        except Exception as error:  # whatever it is, those that are held already are not left alone
            log.warning("no more jobs for this pass: %s", type(error).__name__)
        return mates

    def _end(self, claims: list[Claim]) -> None:
        """Everything that may take time is done while the heartbeats keep the jobs."""
        with ExitStack() as stack:
            jobs = [(claim, stack.enter_context(self._heartbeat(claim))) for claim in claims]
            for claim in claims:
                if claim.previous_fence:
                    with _of(claim):
                        self._discard(claim, claim.previous_fence)
            problems: list[Exception] = []
            made: list[tuple[Outcome, MadeAdapter]] = []
            for (claim, progress), result in zip(jobs, self._adapted(jobs), strict=True):
                try:
                    with _of(claim):
                        made += self._end_one(claim, progress, result)
                except Exception as error:  # the others of the pass must not be left as they are for it
                    problems.append(error)
                finally:
                    progress.ended.set()
        self._observe(made)
        if problems:
            raise problems[0]

    def _end_one(self, claim: Claim, progress: Progress, result: "MadeAdapter | Exception") -> list[tuple[Outcome, MadeAdapter]]:
        """The job's outcome and made_adapter, where it ended with one."""
        try:
            if isinstance(result, ClaimLost | Stopping):
                raise result
            if isinstance(result, Exception):
                outcome = self._failed(result, progress)
            if progress.lost.is_set():
                raise ClaimLost
            if not isinstance(result, Exception):
                outcome = self._stored(claim, result, progress)
            kept = self._until_back(lambda: self.records.claims.commit(claim, outcome), progress)
        except ClaimLost:
            self._lost(claim)
            return []
        except Stopping:
            self._hand_back(claim, progress, "its worker was stopped", delay_ms=0, counts=False)
            return []
        except _CacheRefused as refusal:
            self._discard(claim, claim.fence)
            self._hand_back(claim, progress, str(refusal), delay_ms=_AGAIN_MS, counts=refusal.counts)
            return []
        if kept is None:
            self._lost(claim)
            return []
        log.info(outcome.status)
        if outcome.status == "ready" and (kept.pinned or kept.ttl_ms != claim.ttl_ms):
            self._keep(claim, kept)
        return [] if isinstance(result, Exception) else [(outcome, result)]

    def _observe(self, made: list[tuple[Outcome, MadeAdapter]]) -> None:
        """After the last of a pass, whose steps are counted once: those of the job that took most."""
        if not made:
            return
        stages = {stage: [outcome.timings[stage] for outcome, _ in made] for stage in made[0][0].timings}
        steps = max((made_adapter.steps_ms for _, made_adapter in made), key=len)
        try:
            self.records.counts.observe({**stages, "inner_step": steps})
        except redis.RedisError as error:
            log.warning("the times of %d jobs are not counted: %s", len(made), type(error).__name__)

    def _lost(self, claim: Claim) -> None:
        self._discard(claim, claim.fence)
        log.warning("commit refused: the claim no longer holds")

    def _hand_back(self, claim: Claim, progress: Progress, reason: str, *, delay_ms: int, counts: bool) -> None:
        if self._until_back(lambda: self.records.claims.hand_back(claim, reason, delay_ms=delay_ms, counts=counts), progress):
            log.warning("handed back: %s", reason)
        else:
            log.warning("not handed back (%s): the claim no longer holds", reason)

    def _adapted(self, jobs: list[tuple[Claim, Progress]]) -> "list[MadeAdapter | Exception]":
        """In one pass those that can be, or where that fails one by one, so that every job gets an error of its own: for each its
        made_adapter, or why there is none."""
        together = [number for number, (claim, _) in enumerate(jobs) if self.runtime.together(claim.recipe)]
        results = self._in_one_pass(jobs, together) if len(together) > 1 else {}
        return [results[number] if number in results else self._alone(job) for number, job in enumerate(jobs)]

    def _in_one_pass(self, jobs: list[tuple[Claim, Progress]], which: list[int]) -> "dict[int, MadeAdapter | Exception]":
        """By number, without those that are to be done alone: all where the pass fails, and who had no time beside the others."""
        chosen = [jobs[number] for number in which]
        try:
            made = self.runtime.adapt_together([claim.recipe for claim, _ in chosen], **self._while_held(chosen))
        except (ClaimLost, Stopping) as stop:
            return dict.fromkeys(which, stop)
        except Exception as error:
            log.warning("%d jobs fail in one pass (%s) and are done one by one", len(which), type(error).__name__)
            return {}
        log.info("%d jobs in one pass", len(which))
        return {number: each for number, each in zip(which, made, strict=True) if not isinstance(each, DeadlineExceeded)}

    def _alone(self, job: tuple[Claim, Progress]) -> "MadeAdapter | Exception":
        claim, progress = job
        progress.losses.clear()
        with _of(claim):
            try:
                return self.runtime.adapt(claim.recipe, **self._while_held([job]))
            except Exception as error:
                return error

    def _while_held(self, jobs: list[tuple[Claim, Progress]]) -> dict[str, Any]:
        """The deadline, and an `on_step` that stops the pass where no job is held any more, or the worker was told to stop more
        than `drain_seconds` ago."""

        def on_step(losses: dict[int, float]) -> None:
            for number, loss in losses.items():
                jobs[number][1].losses.append(loss)
            if all(progress.lost.is_set() for _, progress in jobs):
                raise ClaimLost
            if self.draining.over():
                raise Stopping

        return {"deadline": time.monotonic() + self.settings.job_seconds, "on_step": on_step}

    def _failed(self, error: Exception, progress: Progress) -> Outcome:
        losses = tuple(progress.losses)
        if not isinstance(error, MetatrainError):
            # Its message may quote the support set, so only the type leaves the worker's log of this traceback.
            log.error("internal error\n%s", places(error))
            return Outcome(status="failed", error=f"internal error: {type(error).__name__}", support_loss=losses)
        log.warning("%s, the reason is in the record", type(error).__name__)  # and not here: it may quote an input
        limit = f" (JOB_SECONDS is {self.settings.job_seconds:g})" if isinstance(error, DeadlineExceeded) else ""
        return Outcome(status="failed", error=f"{error}{limit}", support_loss=losses)

    def _stored(self, claim: Claim, made_adapter: MadeAdapter, progress: Progress) -> Outcome:
        began = time.perf_counter()
        self._store(claim, made_adapter.content, progress)
        timings = {"queue": float(claim.waited_ms), **made_adapter.timings, "store": 1e3 * (time.perf_counter() - began)}
        digest = weights_digest(made_adapter.content)
        size = len(made_adapter.content)
        return Outcome(status="ready", digest=digest, size=size, support_loss=made_adapter.support_loss, timings=timings)

    def _store(self, claim: Claim, content: bytes, progress: Progress) -> None:
        """Raises _CacheRefused: an attempt where the cache says no, none where it stays out of reach; and ClaimLost."""
        try:
            self._until_back(
                lambda: self.store.put(claim.tenant, claim.adapter_id, claim.fence, content, claim.ttl_ms), progress, _CACHE_SECONDS
            )
        except redis.exceptions.ResponseError as error:
            raise _CacheRefused(f"the cache refused the weights: {error}", counts=True) from error
        except redis.RedisError as error:
            raise _CacheRefused(f"the cache is out of reach: {type(error).__name__}", counts=False) from error

    def _until_back(self, ask: Callable[[], T], progress: Progress, seconds: float | None = None) -> T:
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

    def _keep(self, claim: Claim, kept: WeightsLifetime) -> None:
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
    def _heartbeat(self, claim: Claim) -> Iterator[Progress]:
        """Keep the lease and publish the support loss from a thread while the block runs; note when the claim is lost."""
        progress, lease_ms = Progress(), self.settings.lease_seconds * 1000
        losses = progress.losses

        def beat() -> None:
            reported = 0
            next_lease = time.monotonic() + lease_ms / 3000
            while not progress.ended.wait(0.05):
                if len(losses) == reported and time.monotonic() < next_lease:
                    continue
                reported, next_lease = len(losses), time.monotonic() + lease_ms / 3000
                try:
                    if not self.records.claims.heartbeat(claim, lease_ms, losses[:reported]):
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
            progress.ended.set()
            thread.join()
