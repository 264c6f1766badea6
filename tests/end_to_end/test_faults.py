"""Partial failures: lost cache entries, Redis down, a killed worker, service or parent process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import redis

from tests.conftest import RedisServer
from tests.end_to_end.conftest import ROOT, Served, free_port, is_worker, served, start_module
from tests.end_to_end.test_service import BODY, SUPPORT, WARNINGS, adapt, identity, predict
from tests.warm import Forked

_READY = {"status": "ready", "truncated": [], "warnings": WARNINGS}


@dataclass(frozen=True)
class Separate:
    """A service whose Redis server and worker are processes of their own."""

    service: Served
    redis_server: RedisServer
    worker: "subprocess.Popen[bytes] | Forked"


@pytest.fixture(scope="module")
def separate(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Separate]:
    """Run a service whose device holds only one adapter, so that a request for another adapter evicts it."""
    folder, redis_server = tmp_path_factory.mktemp("separate"), RedisServer(tmp_path_factory.mktemp("redis"))
    settings = {"LEASE_SECONDS": "2", "BANK_MB": "0.001", "SHELF_MB": "0", "READAPT_WAIT_SECONDS": "1"}
    variables = {**environment, **settings, "REDIS_URL": redis_server.url}
    redis_server.start()
    worker = start_module("worker", environment={**os.environ, **variables}, log=folder / "worker.log")
    try:
        with served(folder, variables) as service:
            service.wait_ready()
            yield Separate(service, redis_server, worker)
    finally:
        worker.kill()
        worker.wait()
        redis_server.stop()


@pytest.fixture(scope="module")
def service(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run a service tied to its parent process, as `make serve` does. `service.process` is the parent."""
    folder, port = tmp_path_factory.mktemp("tied"), free_port()
    starter = "import os, subprocess, sys, time; parent = str(os.getpid()); "
    starter += "subprocess.Popen([parent if a == 'PARENT' else a for a in sys.argv[1:]]); time.sleep(600)"
    serve = [sys.executable, "-m", "service", "serve", "--tied", "PARENT", "--port", str(port), "--data-dir", str(folder / "data")]
    variables = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "CACHE_URL")}
    with (folder / "service.log").open("wb") as log:
        parent = subprocess.Popen(
            [sys.executable, "-c", starter, *serve],
            env={**variables, **environment, "LEASE_SECONDS": "2"},
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
    running = Served(parent, f"http://127.0.0.1:{port}", folder / "service.log")
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


def predict_once_recomputed(service: Served, adapter: str) -> object:
    """Predict with an adapter whose weights are lost. Return the first answer that is not a 503."""
    deadline = time.monotonic() + 30
    while (answer := predict(service, adapter, ["order pizza"])).status_code == 503 and time.monotonic() < deadline:
        pass  # each request waits for the weights for up to READAPT_WAIT_SECONDS
    assert answer.status_code == 200, answer.text
    return answer.json()


def start_long_job(service: Served, body: dict[str, Any]) -> str:
    """Request an adapter, wait until its job runs, and return its id."""
    adapter = str(service.http.post("/adapt", json=body).json()["adapter_id"])
    while service.http.get(f"/adapters/{adapter}").json()["status"] == "queued":
        time.sleep(0.002)
    return adapter


def test_redis_down_is_503_with_retry_after_until_it_is_back(separate: Separate) -> None:
    service = separate.service
    adapter = identity(service, BODY)
    separate.redis_server.stop()
    for response in (
        service.http.post("/adapt", json=BODY),
        predict(service, adapter, ["order"]),
        service.http.get("/adapters"),
    ):
        assert response.status_code == 503 and int(response.headers["Retry-After"]) > 0
        assert response.headers["content-type"] == "application/problem+json"
    time.sleep(1.05)  # the answer of /readyz may be a second old
    assert service.http.get("/readyz").json()["missing"] == ["redis", "cache"]
    assert service.http.get("/healthz").status_code == 200
    separate.redis_server.start()
    service.wait_ready(60)
    assert predict(service, adapter, ["order pizza"]).json()["predictions"][0]["label"] == "order"
    # The worker reconnects as well and runs new jobs.
    assert adapt(service, {**BODY, "options": {"seed": 3}}, wait=60).json()["status"] == "ready"


def test_evicted_weights_are_recomputed_and_corrupt_ones_are_never_served(separate: Separate) -> None:
    service, client = separate.service, redis.Redis.from_url(separate.redis_server.url)
    adapter = identity(service, BODY)
    other = identity(service, {**BODY, "options": {"steps": 4}})
    before = predict(service, adapter, ["order pizza"]).json()
    predict(service, other, ["order"])
    (key,) = client.scan_iter(f"qs:default:weights:{adapter}:*")
    client.delete(key)
    assert service.http.get(f"/adapters/{adapter}").json()["status"] == "evicted"
    # The recomputed weights are identical, so the digest is too.
    assert predict_once_recomputed(service, adapter) == before
    predict(service, other, ["order"])
    (key,) = client.scan_iter(f"qs:default:weights:{adapter}:*")
    client.setrange(key, 400, b"corrupted")
    assert predict_once_recomputed(service, adapter) == before
    client.close()


def test_an_evicted_adapter_without_a_worker_is_503_and_never_the_bare_model(separate: Separate) -> None:
    """Kill the worker. Keep this test the last one of `separate`."""
    service, client = separate.service, redis.Redis.from_url(separate.redis_server.url)
    adapter, other = identity(service, BODY), identity(service, {**BODY, "options": {"steps": 4}})
    assert predict(service, other, ["order"]).status_code == 200  # evicts the adapter from the device
    separate.worker.kill()
    separate.worker.wait()
    (key,) = client.scan_iter(f"qs:default:weights:{adapter}:*")
    client.delete(key)
    client.close()
    response = predict(service, adapter, ["order pizza"])
    assert response.status_code == 503 and int(response.headers["Retry-After"]) > 0
    assert predict(service, adapter, ["order pizza"]).status_code == 503  # its job is queued, but there is no worker


def test_a_killed_worker_is_replaced_and_its_job_ends(service: Served) -> None:
    worker = service.worker()
    body = {**BODY, "options": {"steps": 100, "seed": 12}}
    adapter = start_long_job(service, body)
    worker.kill()
    assert adapt(service, body, wait=60).json() == _READY | {"adapter_id": adapter}
    assert service.http.get(f"/adapters/{adapter}").json()["attempt"] == 2


def jobs(environment: dict[str, str], data: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `quickstudy jobs` on a data folder."""
    command = [sys.executable, "-m", "service", "jobs", "--data-dir", str(data), *arguments]
    variables = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "CACHE_URL")}
    return subprocess.run(
        command, env={**variables, **environment}, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.long
def test_a_support_set_that_kills_its_workers_ends_as_dead_and_can_be_retried_or_dropped(
    environment: dict[str, str], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    assert "no quickstudy runs on --data-dir" in jobs(environment, data, "dead").stderr
    with served(tmp_path, {**environment, "LEASE_SECONDS": "2", "ATTEMPTS": "1"}) as service:
        service.wait_ready()
        assert jobs(environment, data, "dead").stdout == "no dead jobs\n"
        body = {**BODY, "options": {"steps": 100, "seed": 13}}
        adapter = start_long_job(service, body)
        worker = service.worker()
        worker.kill()
        answer = adapt(service, body, wait=60)
        state = service.http.get(f"/adapters/{adapter}").json()
        assert answer.json()["status"] == "failed" and state["error"].startswith(
            "no worker finished this job in 1 attempt; the last one"
        )
        (listed,) = json.loads(jobs(environment, data, "dead", "--json").stdout)
        assert listed["job"] == f"default/{adapter}" and listed["reason"] == state["error"] and listed["examples"] == 5
        assert not any(example["input"] in jobs(environment, data, "dead").stdout for example in SUPPORT)
        for wrong, code, message in (
            (("retry",), 2, "expected either jobs, as `quickstudy jobs dead` names them, or --all"),
            (("retry", adapter), 2, f"JOB: expected TENANT/ADAPTER as `quickstudy jobs dead` names it, got '{adapter}'"),
            (("drop", "default/a0"), 1, "default/a0 is not a dead job\n"),
            (("retry", "default/a0"), 1, "default/a0 is not a dead job\n"),
        ):
            refused = jobs(environment, data, *wrong)
            assert refused.returncode == code and refused.stderr.startswith(f"error: {message}")
        assert jobs(environment, data, "retry", "--all").stdout == f"default/{adapter} waits again\n"
        deadline = time.monotonic() + 40
        while (status := service.http.get(f"/adapters/{adapter}").json()["status"]) != "ready" and time.monotonic() < deadline:
            time.sleep(0.2)
        assert status == "ready"
        assert jobs(environment, data, "dead").stdout == "no dead jobs\n"


@pytest.mark.long
def test_after_delete_no_text_is_left_in_files_or_logs(environment: dict[str, str], tmp_path: Path) -> None:
    texts = [example["input"].encode() for example in SUPPORT]

    def files_with_texts() -> list[Path]:
        return [p for p in tmp_path.rglob("*") if p.is_file() and any(text in p.read_bytes() for text in texts)]

    with served(tmp_path, {**environment, "ERASE_SECONDS": "0.5"}) as service:
        service.wait_ready()
        adapter = identity(service, BODY)
        predict(service, adapter, ["order pizza"])
        assert files_with_texts()  # the record is on disk before the request is answered
        assert service.http.delete(f"/adapters/{adapter}").status_code == 204
        deadline = time.monotonic() + 30
        while files_with_texts():
            assert time.monotonic() < deadline, files_with_texts()
            time.sleep(0.2)
        kept = identity(service, {**BODY, "options": {"seed": 4}})  # the rewritten append-only file must keep accepted jobs
        service.process.kill()
        service.process.wait()
    with served(tmp_path, environment) as service:
        service.wait_ready()
        assert service.http.get(f"/adapters/{kept}").json()["status"] == "ready"


def check_no_process_is_left(family: list[psutil.Process]) -> None:
    gone, alive = psutil.wait_procs(family, timeout=10)
    assert not alive and len(gone) == len(family)


@pytest.mark.long
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_service_leaves_no_process_running(environment: dict[str, str], tmp_path: Path, stop: signal.Signals) -> None:
    with served(tmp_path, environment) as service:
        service.wait_ready()
        family = service.family()
        service.process.send_signal(stop)
        service.process.wait(30)
        check_no_process_is_left(family)


def test_a_killed_service_loses_nothing_and_a_stopping_one_answers_at_once(environment: dict[str, str], tmp_path: Path) -> None:
    """Kill a service while a job runs. Start it again on its data folder, and stop it while clients wait."""
    variables, body = {**environment, "LEASE_SECONDS": "2"}, {**BODY, "options": {"steps": 100, "seed": 31}}
    with served(tmp_path, variables) as service:
        service.wait_ready()
        ready = identity(service, BODY)
        before = predict(service, ready, ["order pizza"]).json()
        family = service.family()
        assert any("valkey-server" in part for p in family for part in p.cmdline())
        assert any(map(is_worker, family))
        interrupted = start_long_job(service, body)
        service.process.kill()
        service.process.wait()
        check_no_process_is_left(family)
    left_behind = Path((tmp_path / "data" / "url").read_text().removeprefix("unix://")).parent
    assert left_behind.is_dir()
    with served(tmp_path, variables) as service:
        service.wait_ready()
        assert not left_behind.exists()
        assert predict(service, ready, ["order pizza"]).json() == before
        assert adapt(service, body, wait=60).json() == _READY | {"adapter_id": interrupted}
        assert service.http.get(f"/adapters/{interrupted}").json()["attempt"] == 2
        check_waiting_requests_are_answered_at_a_stop(service)


def check_waiting_requests_are_answered_at_a_stop(service: Served) -> None:
    family, worker, body = service.family(), service.worker(), {**BODY, "options": {"seed": 32}}
    worker.suspend()
    adapter = service.http.post("/adapt", json=body).json()["adapter_id"]
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(adapt, service, body, wait=50)
        stream = pool.submit(httpx.get, f"{service.url}/adapters/{adapter}/events", timeout=60)
        time.sleep(0.5)
        service.process.terminate()
        response, events = answer.result(10), stream.result(10).text
    worker.resume()
    assert events.count("event: status") == 1 and '"queued"' in events and "event: end" not in events
    assert (response.status_code, response.json()["status"]) == (202, "queued")
    assert service.process.wait(30) == 0
    check_no_process_is_left(family)


def test_a_service_stopped_before_it_is_ready_leaves_no_process_running(environment: dict[str, str], tmp_path: Path) -> None:
    """Stop a service while it imports its libraries."""
    with served(tmp_path, environment, forked=False) as service:
        deadline = time.monotonic() + 30
        while not (family := service.family()) and time.monotonic() < deadline:
            time.sleep(0.02)
        service.process.terminate()
        service.process.wait(30)
        assert not psutil.wait_procs(family, timeout=10)[1]


def test_a_tied_service_ends_if_its_parent_ends_during_the_start(environment: dict[str, str], tmp_path: Path) -> None:
    starter = (
        "import os, subprocess, sys; p = subprocess.Popen([*sys.argv[1:], '--tied', str(os.getpid())]); print(p.pid, flush=True)"
    )
    command = [sys.executable, "-c", starter, sys.executable, "-m", "service", "serve", "--port", "0"]
    variables = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "CACHE_URL")}
    done = subprocess.run(
        [*command, "--data-dir", str(tmp_path / "data")],
        env={**variables, **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    orphan = int(done.stdout)
    deadline = time.monotonic() + 15
    while psutil.pid_exists(orphan) and psutil.Process(orphan).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the service outlived the process it was tied to"
        time.sleep(0.05)


def failed_start(environment: dict[str, str], *arguments: str) -> str:
    """Start a service that must fail, and return what it wrote to stderr."""
    command = [sys.executable, "-m", "service", "serve", *arguments]
    done = subprocess.run(
        command, env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    return done.stderr


def test_a_service_that_cannot_start_reports_the_reason_in_one_line(
    service: Served, environment: dict[str, str], tmp_path: Path
) -> None:
    data = service.log.parent / "data"
    assert f"error: another quickstudy is using {data}" in failed_start(environment, "--port", "0", "--data-dir", str(data))
    port = service.url.rsplit(":", 1)[1]
    port_in_use = failed_start(environment, "--port", port, "--data-dir", str(tmp_path / "d"))
    assert not (tmp_path / "d").exists()
    assert f"error: --host 127.0.0.1 --port {port}: Address already in use" in port_in_use
    assert "error: LEASE_SECONDS" in failed_start({**environment, "LEASE_SECONDS": "soon"}, "--port", "0")
    nowhere = failed_start({**environment, "INITIALIZATIONS_DIR": "./nowhere"}, "--port", "0", "--data-dir", str(tmp_path / "f"))
    assert "error: INITIALIZATIONS_DIR: expected a folder of initialization folders, got 'nowhere'" in nowhere


def test_killing_make_serve_ends_the_service(service: Served) -> None:
    """Kill the parent process that `--tied` names, as if `make` were killed.

    Keep this test the last one of `service`.
    """
    family = service.family()
    assert len(family) == 3
    service.process.kill()
    service.process.wait()
    assert not psutil.wait_procs(family, timeout=20)[1]
