"""Many jobs under faults (the short form of `make faults`), and one job run by two workers at once."""

import random
import signal
import time
from pathlib import Path

import httpx
import pytest

from benchmarks.faults import Deployment, draw_support_sets, storm, violations
from tests.end_to_end.test_service import BODY
from worker.ledger.records import Records

SETTINGS = {"LEASE_SECONDS": "2", "THREADS": "1", "JOB_SECONDS": "20", "HANG_SECONDS": "2"}


@pytest.mark.parametrize(
    ("count", "seconds"), [(18, 20.0), pytest.param(150, 120.0, marks=pytest.mark.long)], ids=["short", "long"]
)
def test_every_accepted_job_ends_once(environment: dict[str, str], tmp_path: Path, count: int, seconds: float) -> None:
    deployment = Deployment(tmp_path, {**environment, **SETTINGS}, workers=2)
    try:
        deployment.wait_ready()
        report = storm(deployment, draw_support_sets(count, random.Random(1)), "lora-from-zero", seconds=seconds, seed=1)
    finally:
        deployment.close()
    assert violations(report) == []
    assert report.counts["accepted"] >= count and len(report.faults) >= 3
    assert {job.status for job in report.jobs} <= {"ready", "failed"}
    assert all(job.view["error"] for job in report.jobs if job.status == "failed")
    assert not any(job.body["support"][0]["input"] in path.read_text() for job in report.jobs for path in tmp_path.glob("*.log"))


def test_one_job_in_two_workers_is_committed_once(environment: dict[str, str], tmp_path: Path) -> None:
    """Pause a worker for longer than its lease. Resume it after another worker has finished its job."""
    deployment = Deployment(tmp_path, {**environment, **SETTINGS}, workers=2)
    first, second = deployment.workers
    records = Records(deployment.direct("broker"))
    try:
        deployment.wait_ready()
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
        while (counts := records.counts.read()).get("overtaken", 0) + counts.get("refused_commits", 0) == 0:
            assert time.monotonic() < deadline, counts
            time.sleep(0.05)
        assert (counts["attempts"], counts["lost_workers"], counts["ready"]) == (2, 1, 1)
        after = httpx.get(f"{deployment.url}/adapters/{adapter}").json()
        assert after["digest"] == view["digest"] and after["attempt"] == 2 and after["recovery_ms"] >= 1000
        weights = [key.decode() for key in deployment.direct("cache").scan_iter("qs:*:weights:*")]
        fence = records.get("default", adapter).fence  # type: ignore[union-attr]
        assert weights == [f"qs:default:weights:{adapter}:{fence}"]
    finally:
        deployment.close()
