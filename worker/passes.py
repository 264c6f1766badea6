"""Run the inner loops of claimed jobs. Jobs that can share a pass run in one batched inner loop."""

import logging
import time
from collections.abc import Callable, Sequence

from metatrain.errors import DeadlineExceeded
from worker.draining import DrainTimer
from worker.errors import ClaimLost, Stopping
from worker.heartbeat import HeldJob
from worker.ledger.claims import Claim
from worker.runtime import MadeAdapter, Runtime
from worker.settings import WorkerSettings
from worker.watchdog import Watchdog

log = logging.getLogger(__name__)


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

    def adapt(self, jobs: Sequence[HeldJob]) -> list[MadeAdapter | Exception]:
        """Run the inner loops of claimed jobs. Return one entry per job: its adapter or its error.

        If a pass of several jobs fails, its jobs run again one by one, so that each job gets its own adapter or error.
        """
        sharing = [number for number, job in enumerate(jobs) if self._runtime.can_share_pass(job.claim.recipe)]
        results = self._adapt_in_one_pass(jobs, sharing) if len(sharing) > 1 else {}
        return [results[number] if number in results else self._adapt_alone(job) for number, job in enumerate(jobs)]

    def _adapt_in_one_pass(self, jobs: Sequence[HeldJob], numbers: list[int]) -> dict[int, MadeAdapter | Exception]:
        """Run the jobs at the positions `numbers` in one pass, and return their results by position.

        A job without a result must be run alone. If the pass fails, no job has a result; otherwise only jobs that exceeded
        the deadline of the pass have none. If all claims are lost or the worker stops, every job gets that error as its result.
        """
        chosen = [jobs[number] for number in numbers]
        try:
            with self._watchdog.limit(self._settings.job_seconds, chosen):
                made = self._runtime.adapt_together(
                    [job.claim.recipe for job in chosen], deadline=self._deadline(), on_step=self._on_step(chosen)
                )
        except (ClaimLost, Stopping) as stop:
            return dict.fromkeys(numbers, stop)
        except Exception as error:
            log.warning("a pass of %d jobs failed (%s): running them one by one", len(numbers), type(error).__name__)
            return {}
        log.info("%d jobs in one pass", len(numbers))
        return {number: result for number, result in zip(numbers, made, strict=True) if not isinstance(result, DeadlineExceeded)}

    def _adapt_alone(self, job: HeldJob) -> MadeAdapter | Exception:
        job.losses.clear()
        with job.log_fields(), self._watchdog.limit(self._settings.job_seconds, [job]):
            try:
                return self._runtime.adapt(job.claim.recipe, deadline=self._deadline(), on_step=self._on_step([job]))
            except Exception as error:
                return error

    def _deadline(self) -> float:
        return time.monotonic() + self._settings.job_seconds

    def _on_step(self, jobs: Sequence[HeldJob]) -> Callable[[dict[int, float]], None]:
        """Return a callback that runs after each inner step of a pass and stores the support losses.

        It stops the pass by raising ClaimLost once the claims of all jobs are lost, or Stopping once the drain time of a stopping
        worker is over.
        """

        def on_step(losses: dict[int, float]) -> None:
            for number, loss in losses.items():
                jobs[number].losses.append(loss)
            if all(job.lost.is_set() for job in jobs):
                raise ClaimLost
            if self._draining.expired():
                raise Stopping

        return on_step
