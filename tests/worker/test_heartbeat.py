"""Heartbeats notice when a worker has lost its claim on a job."""

import time
from typing import Any

from metatrain.models.base import Base
from tests.worker.jobs import recipe
from worker.job import JobRunner
from worker.ledger.messages import JobRecipe
from worker.runtime import MadeAdapter, Resident, Runtime
from worker.settings import WorkerSettings


def test_deleting_a_job_stops_its_inner_loop(runner: JobRunner, tiny: Base) -> None:
    """A heartbeat notices the deletion at once, and the inner loop ends at its next step."""
    steps = []

    class Slow(Runtime):
        def adapt(self, recipe: JobRecipe, *, on_step: Any = None, **_: object) -> MadeAdapter:
            for step in range(200):
                steps.append(step)
                if step == 1:
                    runner.records.delete("t", "a1")
                time.sleep(0.02)
                on_step({0: 1.0})
            raise AssertionError("the inner loop was not stopped")

    runner.records.accept("t", "a1", recipe(tiny), 60_000, ())
    JobRunner("w", WorkerSettings(), runner.records, runner.store, Slow(Resident(tiny, {}))).run("t", "a1")
    assert len(steps) < 50 and runner.records.get("t", "a1") is None
