"""Real workers that hang inside an inner step."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from metatrain.artifacts.baselines import lora_from_zero
from metatrain.models.base import Base
from tests.conftest import RedisServer
from tests.end_to_end.conftest import ROOT, start_module
from tests.hanging_worker import HANGS, HOLDS_LOCK
from tests.worker.jobs import recipe
from worker.app import celery_app
from worker.heartbeat import HeldJob
from worker.job import JobRunner
from worker.ledger.claims import Claim, Claimant
from worker.ledger.messages import ADAPT_TASK, TEXT_CLASSIFICATION, wake_up
from worker.ledger.record import Record
from worker.ledger.records import Records
from worker.runtime import Resident
from worker.watchdog import HUNG_STATUS

LIMITS = {"JOB_SECONDS": "2", "HANG_SECONDS": "1", "LEASE_SECONDS": "2", "ATTEMPTS": "2"}


class Supervised:
    """Workers that are started again whenever one ends."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._log = log
        self._process = start_module("tests.hanging_worker", environment={**os.environ, **environment}, log=log)

    @property
    def exits(self) -> list[int]:
        """The exit status of each worker that has ended."""
        return [int(status) for status in re.findall(r"^worker ended with status (\d+)$", self._log.read_text(), re.MULTILINE)]

    def run_until(self, true: Callable[[], bool], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline and self._process.poll() is None, self._log.read_text()[-4000:]
            time.sleep(0.1)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def hanging_workers(redis_server: RedisServer, environment: dict[str, str], folder: Path) -> Iterator[Supervised]:
    workers = Supervised({**environment, **LIMITS, "REDIS_URL": redis_server.url}, folder / "worker.log")
    try:
        yield workers
    finally:
        workers.stop()


def accept(records: Records, redis_server: RedisServer, tiny: Base, seeds: list[int]) -> None:
    """Accept a job for each seed, all with one pass key, and send their wake-ups."""
    init = lora_from_zero(tiny)
    queue = Resident(tiny, {init.name: init}).queue(TEXT_CLASSIFICATION, 2)
    app = celery_app(redis_server.url, queue)
    for seed in seeds:
        records.accept("t", f"a{seed}", recipe(tiny, seed=seed), 86_400_000, (), queue=queue)
        app.send_task(ADAPT_TASK, kwargs=wake_up("t", f"a{seed}"), queue=queue)
    app.close()


def record(records: Records, seed: int) -> Record:
    found = records.get("t", f"a{seed}")
    assert found is not None
    return found


def test_a_worker_that_hangs_ends_itself_and_only_the_job_at_fault_fails(
    redis_server: RedisServer, redis_client: "redis.Redis", environment: dict[str, str], tiny: Base, tmp_path: Path
) -> None:
    """Let one job of three in a pass hang.

    The other two run alone afterwards; the one that hangs uses up its attempts.
    """
    records, seeds = Records(redis_client), [1, HANGS, 2]
    accept(records, redis_server, tiny, seeds)
    with hanging_workers(redis_server, environment, tmp_path) as workers:
        workers.run_until(lambda: all(record(records, seed).status in ("ready", "failed") for seed in seeds))
        log = (tmp_path / "worker.log").read_text()
    assert [record(records, seed).status for seed in seeds] == ["ready", "failed", "ready"]
    assert workers.exits == [HUNG_STATUS] * 2
    assert record(records, HANGS).error == (
        "no worker finished this job in 2 attempts; the last one ended with: its worker hung: no end 1 s after the limit of 2 s"
    )
    assert [record(records, seed).attempt for seed in seeds] == [2, 2, 2]
    assert "this worker hangs" in log and "in hang\n" in log and "thread heartbeat-" in log  # where the threads were
    assert "order pizza" not in log


@pytest.mark.long
def test_a_worker_that_hangs_in_native_code_ends_too(
    redis_server: RedisServer, redis_client: "redis.Redis", environment: dict[str, str], tiny: Base, tmp_path: Path
) -> None:
    """Block all Python threads, also those of the watchdog and the heartbeats."""
    records = Records(redis_client)
    accept(records, redis_server, tiny, [HOLDS_LOCK])
    with hanging_workers(redis_server, environment, tmp_path) as workers:
        workers.run_until(lambda: record(records, HOLDS_LOCK).status == "failed", 240)
    assert workers.exits and set(workers.exits) == {1}
    assert record(records, HOLDS_LOCK).error == "no worker finished this job in 2 attempts; the last one stopped answering"


def test_jobs_that_wait_for_one_that_hangs_lose_no_attempt(runner: JobRunner, tiny: Base) -> None:
    """Hand back three claimed jobs while only the second one is at work."""
    claims = []
    for number in range(3):
        runner.records.accept("t", f"a{number}", recipe(tiny, seed=number), 60_000, ())
        claims.append(runner.records.claims.claim("t", f"a{number}", Claimant("w", lease_ms=60_000)))
    held = [HeldJob(claim) for claim in claims if claim is not None]
    held[2].ended.set()
    runner._held = held
    runner.hand_back_hung([held[1]], "its worker hung")
    states = [runner.records.get("t", f"a{number}") for number in range(3)]
    assert [(state.status, state.attempt) for state in states if state] == [("queued", 0), ("queued", 1), ("running", 1)]
    assert all(job.ended.is_set() for job in held)


def test_a_job_that_cannot_be_handed_back_does_not_keep_the_others_of_a_pass(
    runner: JobRunner, tiny: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []
    for number in range(3):
        runner.records.accept("t", f"a{number}", recipe(tiny, seed=number), 60_000, ())
        claim = runner.records.claims.claim("t", f"a{number}", Claimant("w", lease_ms=60_000))
        assert claim is not None
        held.append(HeldJob(claim))
    hand_back, runner._held = runner.records.claims.hand_back, held

    def refused_for_the_first(claim: Claim, reason: str, **options: Any) -> bool:
        if claim.adapter_id == "a0":
            raise redis.TimeoutError
        return hand_back(claim, reason, **options)

    monkeypatch.setattr(runner.records.claims, "hand_back", refused_for_the_first)
    runner.hand_back_hung([held[0]], "its worker hung")
    states = [runner.records.get("t", f"a{number}") for number in range(3)]
    assert [(state.status, state.attempt) for state in states if state] == [("running", 1), ("queued", 0), ("queued", 0)]


PAUSED = """
import time
import worker.watchdog as watchdog
watchdog._BACKSTOP_SECONDS = 1.0
dog = watchdog.Watchdog(0.2)
dog.start(lambda jobs, reason: None)
with dog.limit(2.0, []):
    print("began", flush=True)
    for _ in range(12):
        time.sleep(0.1)
print("ended", flush=True)
"""


def test_a_worker_that_is_suspended_again_and_again_does_not_count_as_hung() -> None:
    """Suspend a process twice, each time for less than the backstop and in sum for longer."""
    command = [sys.executable, "-c", PAUSED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT) as process:
        assert process.stdout is not None and process.stdout.readline() == "began\n"
        for _ in range(2):
            time.sleep(0.3)  # at least one tick of the watchdog
            process.send_signal(signal.SIGSTOP)
            time.sleep(2.2)
            process.send_signal(signal.SIGCONT)
        assert process.stdout.read() == "ended\n" and process.wait() == 0


TWO_THREADS = """
import sys, threading, time
from worker.watchdog import Watchdog
dog = Watchdog(0.2)
dog.start(lambda jobs, reason: print("handed back", list(jobs), flush=True))

def commit():
    with dog.limit(0.1, ["committed"]):
        pass
    if sys.argv[1] == "commit":
        with dog.limit(0.3, ["hanging commit"]):
            time.sleep(60)

jobs = ["ready", "unfinished"]
with dog.limit(0.6 if sys.argv[1] == "pass" else 60, jobs):
    threading.Thread(target=commit, daemon=True).start()
    time.sleep(0.2)
    jobs.remove("ready")
    time.sleep(60)
"""


@pytest.mark.parametrize(("hanging", "jobs"), [("pass", ["unfinished"]), ("commit", ["hanging commit"])])
def test_a_pass_and_a_commit_beside_it_are_both_watched(hanging: str, jobs: list[str]) -> None:
    """Let a pass hang after a commit has ended, and a commit hang while the pass has time left."""
    ended = subprocess.run(
        [sys.executable, "-c", TWO_THREADS, hanging], capture_output=True, text=True, cwd=ROOT, timeout=50, check=False
    )
    assert (ended.returncode, ended.stdout) == (HUNG_STATUS, f"handed back {jobs}\n")
