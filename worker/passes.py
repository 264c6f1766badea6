"""Run the inner loops of claimed jobs: those that can share one forward pass together, the others one by one."""

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

log = logging.getLogger(__name__)


class PassRunner:
    """Decide which jobs share a pass, and run it."""

    def __init__(self, settings: WorkerSettings, runtime: Runtime, draining: DrainTimer) -> None:
        self._settings, self._runtime, self._draining = settings, runtime, draining

    def room_beside(self, claim: Claim) -> int:
        """Return how many more jobs with the same pass key may run in one pass with this one.

        None if this is not its first attempt, or the only one allowed: a job that cost one worker may cost another, and must not
        use up attempts of other jobs.
        """
        if claim.attempt > 1 or self._settings.attempts == 1 or not self._runtime.together(claim.recipe):
            return 0
        rows_each = 1 << claim.recipe.rows.bit_length()
        return max(0, min(self._settings.jobs_together, self._settings.pass_rows // rows_each) - 1)

    def adapt(self, jobs: Sequence[HeldJob]) -> list[MadeAdapter | Exception]:
        """Return for each job its adapter, or the error that stands in its place.

        If a pass of several jobs fails, they run one by one, so that every job gets an error of its own.
        """
        together = [number for number, job in enumerate(jobs) if self._runtime.together(job.claim.recipe)]
        results = self._in_one_pass(jobs, together) if len(together) > 1 else {}
        return [results[number] if number in results else self._alone(job) for number, job in enumerate(jobs)]

    def _in_one_pass(self, jobs: Sequence[HeldJob], numbers: list[int]) -> dict[int, MadeAdapter | Exception]:
        """Return the results of one pass by number, without those of jobs that have to run alone.

        These are all of them if the pass fails, and those that ran out of time beside the others.
        """
        chosen = [jobs[number] for number in numbers]
        try:
            made = self._runtime.adapt_together(
                [job.claim.recipe for job in chosen], deadline=self._deadline(), on_step=self._on_step(chosen)
            )
        except (ClaimLost, Stopping) as stop:
            return dict.fromkeys(numbers, stop)
        except Exception as error:
            log.warning("%d jobs fail in one pass (%s) and are done one by one", len(numbers), type(error).__name__)
            return {}
        log.info("%d jobs in one pass", len(numbers))
        return {number: each for number, each in zip(numbers, made, strict=True) if not isinstance(each, DeadlineExceeded)}

    def _alone(self, job: HeldJob) -> MadeAdapter | Exception:
        job.losses.clear()
        with job.log_fields():
            try:
                return self._runtime.adapt(job.claim.recipe, deadline=self._deadline(), on_step=self._on_step([job]))
            except Exception as error:
                return error

    def _deadline(self) -> float:
        return time.monotonic() + self._settings.job_seconds

    def _on_step(self, jobs: Sequence[HeldJob]) -> Callable[[dict[int, float]], None]:
        """Return what a pass calls at each inner step. It notes the losses, and raises to stop the pass.

        ClaimLost: no job is held any more. Stopping: the worker's time to drain is over.
        """

        def on_step(losses: dict[int, float]) -> None:
            for number, loss in losses.items():
                jobs[number].losses.append(loss)
            if all(job.lost.is_set() for job in jobs):
                raise ClaimLost
            if self._draining.expired():
                raise Stopping

        return on_step
