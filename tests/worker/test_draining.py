"""Graceful shutdown of a worker."""

import time

from metatrain.models.base import Base
from tests.worker.jobs import accept_several, recipe, status_of
from worker.job import JobRunner
from worker.settings import WorkerSettings


def test_a_stopping_worker_finishes_short_jobs_and_hands_back_long_ones(runner: JobRunner, tiny: Base) -> None:
    for seconds, status in ((60.0, "ready"), (0.0, "queued")):
        stopping = JobRunner("w", WorkerSettings(drain_seconds=seconds), runner.records, runner.store, runner.runtime)
        stopping.draining.start()
        time.sleep(0.01)
        runner.records.accept("t", f"a{status}", recipe(tiny), 60_000, ())
        stopping.run("t", f"a{status}")
        record = runner.records.get("t", f"a{status}")
        assert record is not None and record.status == status
        assert (record.attempt, record.last_error) == ((1, None) if status == "ready" else (0, "its worker was stopped"))
    assert runner.records.waiting.due() == [("t", "aqueued", "")]  # it has no wake-up in a queue, so it is announced at once


def test_a_stopping_worker_hands_back_all_jobs_of_a_pass(runner: JobRunner, tiny: Base) -> None:
    accept_several(runner, tiny, 3)
    stopping = JobRunner("w", WorkerSettings(drain_seconds=0), runner.records, runner.store, runner.runtime)
    stopping.draining.start()
    time.sleep(0.01)
    stopping.run("t", "a0")
    assert [status_of(runner, n) for n in range(3)] == ["queued"] * 3
    assert runner.records.counts.read().get("dead") is None
    assert {record.attempt for n in range(3) if (record := runner.records.get("t", f"a{n}")) is not None} == {0}
