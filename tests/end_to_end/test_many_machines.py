"""Deployments on several machines.

One has two services and two workers. It stores the records behind a Redis Sentinel and the weights on a Redis Cluster. The other
has workers of different precisions.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.end_to_end.conftest import served, start_module
from tests.end_to_end.test_service import BODY, adapt, identity, predict
from tests.servers import cluster, sentinel, until
from tests.warm import Forked


@contextmanager
def worker(environment: dict[str, str], log: Path) -> Iterator["subprocess.Popen[bytes] | Forked"]:
    process = start_module("worker", environment={**os.environ, **environment}, log=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.long
def test_the_service_survives_the_death_of_the_records_master(environment: dict[str, str], tmp_path: Path) -> None:
    with ExitStack() as stack:
        (tmp_path / "cluster").mkdir()
        url, master, _ = stack.enter_context(sentinel(tmp_path, "queue"))
        cache, _, form = stack.enter_context(cluster(tmp_path / "cluster"))
        form()
        both = {**environment, "REDIS_URL": url, "CACHE_URL": cache, "LEASE_SECONDS": "2", "WAIT_REPLICAS": "1"}
        for number in range(2):
            stack.enter_context(worker(both, tmp_path / f"worker{number}.log"))
        services = []
        for number in range(2):
            (tmp_path / f"service{number}").mkdir()
            services.append(stack.enter_context(served(tmp_path / f"service{number}", both)))
        first, second = services
        first.wait_ready(180)
        second.wait_ready(180)
        adapter = identity(first, BODY)
        assert predict(second, adapter, ["order pizza"]).json()["predictions"][0]["label"] == "order"
        master.kill()
        time.sleep(1.05)  # the answer of /readyz may be a second old
        until(lambda: second.http.get("/readyz").status_code == 200, 180)
        assert second.http.get(f"/adapters/{adapter}").json()["status"] == "ready"
        assert predict(first, adapter, ["close account"]).json()["predictions"][0]["label"] == "close"
        # Without a replica, a new job is written, but the request is answered with 503.
        assert adapt(second, {**BODY, "options": {"seed": 7}}).status_code == 503


@pytest.mark.long
def test_a_job_waits_for_a_worker_of_its_precision(environment: dict[str, str], redis_server, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    both = {**environment, "REDIS_URL": redis_server.url}
    (tmp_path / "service").mkdir()
    with served(tmp_path / "service", both) as service, worker({**both, "PRECISION": "bfloat16"}, tmp_path / "low.log"):
        until(lambda: "ready" in (tmp_path / "low.log").read_text(), 180)
        until(lambda: service.http.get("/healthz").status_code == 200, 180)
        not_ready = service.http.get("/readyz")
        assert not_ready.status_code == 503 and not_ready.json()["missing"] == ["worker"]
        answer = adapt(service, BODY, wait=2)
        assert answer.json()["status"] == "queued"
        with worker(both, tmp_path / "own.log"):
            service.wait_ready(180)
            until(lambda: service.http.get(answer.headers["Location"]).json()["status"] == "ready", 180)
