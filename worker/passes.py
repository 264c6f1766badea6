"""Run the inner loops of claimed jobs. Jobs that can share a pass run in one batched inner loop."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from metatrain.errors import AdaptationError, DeadlineExceeded
from worker.draining import DrainTimer
from worker.errors import ClaimLost, Stopping
from worker.heartbeat import HeldJob
from worker.ledger.claims import Claim
from worker.runtime import MadeAdapter, Runtime
from worker.settings import WorkerSettings
from worker.watchdog import Watchdog

log = logging.getLogger(__name__)
OnResult = Callable[[HeldJob, MadeAdapter | Exception], None]
"""Called with a job and its adapter or its error, as soon as the inner loop of this job has ended."""


class PassRunner:
    """Decides which claimed jobs share a pass (one batched inner loop), and runs them."""

    def __init__(self, settings: WorkerSettings, runtime: Runtime, draining: DrainTimer, watchdog: Watchdog) -> None:
        self._settings, self._runtime, self._draining, self._watchdog = settings, runtime, draining, watchdog

    def spare_places(self, claim: Claim) -> int:
        """Return how many more jobs with the same pass key may run in one pass with the claimed job.

        Returns 0 if the job cannot share a pass, if this is not its first attempt, or if only one attempt is allowed. The reason
        for the last two: a job that crashes or hangs its worker uses up one attempt of every job in its pass.
        """
        if claim.attempt > 1 or self._settings.attempts == 1 or not self._runtime.can_share_pass(claim.recipe):
            return 0
        rows_each = 1 << claim.recipe.rows.bit_length()
        return max(0, min(self._settings.jobs_together, self._settings.pass_rows // rows_each) - 1)

    def adapt(self, jobs: Sequence[HeldJob], on_result: OnResult) -> None:
        """Run the inner loops of claimed jobs, and call `on_result` once for each job.

        That is done as soon as the job has its result, also while other jobs of its pass have steps left. If a pass of
        several jobs fails, its unfinished jobs run again one by one, so that each gets its own adapter or error.
        """
        sharing = [job for job in jobs if self._runtime.can_share_pass(job.claim.recipe)]
        together = sharing if len(sharing) > 1 else []
        alone = [job for job in jobs if not any(job is each for each in together)]
        for job in [*(self._adapt_in_one_pass(together, on_result) if together else ()), *alone]:
            on_result(job, self._adapt_alone(job))

    def _adapt_in_one_pass(self, jobs: Sequence[HeldJob], on_result: OnResult) -> list[HeldJob]:
        """Run jobs in one pass. Return those that must run alone.

        These are the unfinished jobs of a pass that failed, and jobs that exceeded the deadline of the pass.

        If the claims of all unfinished jobs are lost or the worker stops, that error is the result of each of them.
        """
        unfinished = dict(enumerate(jobs))

        def on_made(number: int, made: MadeAdapter | AdaptationError) -> None:
            if not isinstance(made, DeadlineExceeded):
                on_result(unfinished.pop(number), made)

        try:
            with self._watchdog.limit(self._settings.job_seconds, unfinished.values()):
                self._runtime.adapt_together(
                    [job.claim.recipe for job in jobs],
                    deadline=self._deadline(),
                    on_step=self._on_step(unfinished),
                    on_made=on_made,
                )
        except (ClaimLost, Stopping) as stop:
            for job in unfinished.values():
                on_result(job, stop)
            return []
        except Exception as error:
            number, name = len(unfinished), type(error).__name__
            log.warning("a pass of %d jobs failed (%s): running %d of them one by one", len(jobs), name, number)
        else:
            log.info("%d jobs in one pass", len(jobs))
        return list(unfinished.values())

    def _adapt_alone(self, job: HeldJob) -> MadeAdapter | Exception:
        job.losses.clear()
        with job.log_fields(), self._watchdog.limit(self._settings.job_seconds, [job]):
            try:
                return self._runtime.adapt(job.claim.recipe, deadline=self._deadline(), on_step=self._on_step({0: job}))
            except Exception as error:
                return error

    def _deadline(self) -> float:
        return time.monotonic() + self._settings.job_seconds

    def _on_step(self, unfinished: Mapping[int, HeldJob]) -> Callable[[dict[int, float]], None]:
        """Return a callback that runs after each inner step of a pass and stores the support losses.

        `unfinished`: {position in the pass: job}, without the jobs that have ended. The callback stops the pass by
        raising ClaimLost once the claims of all unfinished jobs are lost, or Stopping once the drain time of a stopping worker is
        over.
        """

        def on_step(losses: dict[int, float]) -> None:
            for number, loss in losses.items():
                unfinished[number].losses.append(loss)
            if all(job.lost.is_set() for job in unfinished.values()):
                raise ClaimLost
            if self._draining.expired():
                raise Stopping

        return on_step
