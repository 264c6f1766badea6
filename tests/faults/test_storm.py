"""One job run by two workers at once, and many jobs under faults (the short form of `make faults`)."""

import random
import signal
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from benchmarks.faults import Child, Deployment, Process, draw_support_sets, storm, violations
from tests.end_to_end.test_service import BODY
from tests.tiny import save_tiny_model
from tests.warm import warm
from worker.ledger.records import Records

SETTINGS = {"LEASE_SECONDS": "2", "THREADS": "1", "JOB_SECONDS": "5", "HANG_SECONDS": "1"}


class ForkedProcess(Process):
    """A service or worker that restarts quickly, because it is a fork of a process with all imports."""

    def started(self) -> Child:
        python, option, module, *arguments = self.command
        assert (python, option) == (sys.executable, "-m")
        return warm().start(module, *arguments, environment=self.environment, log=self.log)


@pytest.fixture(scope="module")
def deployment(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    model = save_tiny_model(tmp_path_factory.mktemp("spells"), spells=True)  # the jobs have all kinds of words
    settings = {**environment, **SETTINGS, "BASE_MODEL": str(model), "INITIALIZATIONS_DIR": str(tmp_path_factory.mktemp("none"))}
    running = Deployment(tmp_path_factory.mktemp("deployment"), settings, 2, ForkedProcess)
    try:
        running.wait_ready()
        yield running
    finally:
        running.close()


def test_one_job_in_two_workers_is_committed_once(deployment: Deployment) -> None:
    """Pause a worker for longer than its lease. Resume it after another worker has finished its job."""
    first, second = deployment.workers
    records = Records(deployment.direct("broker"))
    before = records.counts.read()

    def counted(name: str) -> int:
        return records.counts.read().get(name, 0) - before.get(name, 0)

    second.kill()
    body = {**BODY, "options": {"steps": 100, "seed": 21}}
    adapter = httpx.post(f"{deployment.url}/adapt", json=body).json()["adapter_id"]
    deadline = time.monotonic() + 60
    while records.counts.read()["now_running"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    first.send(signal.SIGSTOP)
    second.start()
    while (view := httpx.get(f"{deployment.url}/adapters/{adapter}").json())["status"] != "ready":
        assert time.monotonic() < deadline, view
        time.sleep(0.1)
    first.send(signal.SIGCONT)
    while counted("overtaken") + counted("refused_commits") == 0:
        assert time.monotonic() < deadline, records.counts.read()
        time.sleep(0.05)
    assert (counted("attempts"), counted("lost_workers"), counted("ready")) == (2, 1, 1)
    after = httpx.get(f"{deployment.url}/adapters/{adapter}").json()
    assert after["digest"] == view["digest"] and after["attempt"] == 2 and after["recovery_ms"] >= 1000
    weights = [key.decode() for key in deployment.direct("cache").scan_iter("qs:*:weights:*")]
    fence = records.get("default", adapter).fence  # type: ignore[union-attr]
    assert weights == [f"qs:default:weights:{adapter}:{fence}"]
    assert httpx.delete(f"{deployment.url}/adapters/{adapter}").status_code == 204


@pytest.mark.parametrize(
    ("count", "seconds"), [(12, 12.0), pytest.param(150, 120.0, marks=pytest.mark.long)], ids=["short", "long"]
)
def test_every_accepted_job_ends_once(deployment: Deployment, count: int, seconds: float) -> None:
    report = storm(deployment, draw_support_sets(count, random.Random(1)), "lora-from-zero", seconds=seconds, seed=1)
    assert violations(report) == []
    assert report.counts["accepted"] >= count and len(report.faults) >= 3
    assert {job.status for job in report.jobs} <= {"ready", "failed"}
    assert all(job.view["error"] for job in report.jobs if job.status == "failed")
    logs = [path.read_text() for path in deployment.folder.glob("*.log")]
    assert logs and not any(job.body["support"][0]["input"] in log for job in report.jobs for log in logs)
