"""Partial failures: lost cache entries, Redis down, a killed worker, service or parent process."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import redis

from tests.conftest import RedisServer
from tests.end_to_end.conftest import ROOT, Served, free_port, is_worker, served
from tests.end_to_end.test_service import BODY, SUPPORT, WARNINGS, adapt, identity, predict


@pytest.fixture
def worker_process(redis_server: RedisServer, environment: dict[str, str], tmp_path: Path):  # type: ignore[no-untyped-def]
    with (tmp_path / "worker.log").open("wb") as log:
        variables = {**os.environ, **environment, "REDIS_URL": redis_server.url, "LEASE_SECONDS": "2"}
        process = subprocess.Popen([sys.executable, "-m", "worker"], env=variables, cwd=ROOT, stdout=log, stderr=log)
    yield process
    process.kill()
    process.wait()


def test_redis_down_is_503_with_retry_after_until_it_is_back(
    redis_server: RedisServer, worker_process: "subprocess.Popen[bytes]", environment: dict[str, str], tmp_path: Path
) -> None:
    with served(tmp_path, {**environment, "REDIS_URL": redis_server.url}) as service:
        service.wait_ready()
        adapter = identity(service, BODY)
        redis_server.stop()
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
        redis_server.start()
        service.wait_ready(60)
        assert predict(service, adapter, ["order pizza"]).json()["predictions"][0]["label"] == "order"
        # The worker reconnects as well and runs new jobs.
        assert adapt(service, {**BODY, "options": {"seed": 3}}, wait=60).json()["status"] == "ready"


def test_evicted_weights_are_recomputed_and_corrupt_ones_are_never_served(
    redis_server: RedisServer, worker_process: "subprocess.Popen[bytes]", environment: dict[str, str], tmp_path: Path
) -> None:
    client = redis.Redis.from_url(redis_server.url)
    # The device holds only one adapter, so a request for another adapter evicts it.
    with served(
        tmp_path, {**environment, "REDIS_URL": redis_server.url, "BANK_MB": "0.001", "SHELF_MB": "0", "READAPT_WAIT_SECONDS": "30"}
    ) as service:
        service.wait_ready()
        adapter = identity(service, BODY)
        other = identity(service, {**BODY, "options": {"steps": 4}})
        before = predict(service, adapter, ["order pizza"]).json()
        predict(service, other, ["order"])
        (key,) = client.scan_iter(f"qs:default:weights:{adapter}:*")
        client.delete(key)
        assert service.http.get(f"/adapters/{adapter}").json()["status"] == "evicted"
        after = predict(service, adapter, ["order pizza"])
        assert after.status_code == 200 and after.json() == before  # the recomputed weights are identical, so the digest is too
        predict(service, other, ["order"])
        (key,) = client.scan_iter(f"qs:default:weights:{adapter}:*")
        client.setrange(key, 400, b"corrupted")
        assert predict(service, adapter, ["order pizza"]).json() == before
        client.close()


def test_an_evicted_adapter_without_a_worker_is_503_and_never_the_bare_model(
    redis_server: RedisServer, worker_process: "subprocess.Popen[bytes]", environment: dict[str, str], tmp_path: Path
) -> None:
    client = redis.Redis.from_url(redis_server.url)
    with served(tmp_path, {**environment, "REDIS_URL": redis_server.url, "READAPT_WAIT_SECONDS": "0.5"}) as service:
        service.wait_ready()
        adapter = identity(service, BODY)
        worker_process.kill()
        worker_process.wait()
        (key,) = client.scan_iter(f"qs:default:weights:{adapter}:*")
        client.delete(key)
        response = predict(service, adapter, ["order pizza"])
        assert response.status_code == 503 and int(response.headers["Retry-After"]) > 0
        assert predict(service, adapter, ["order pizza"]).status_code == 503  # its job is queued, but there is no worker
    client.close()


def test_a_killed_worker_is_replaced_and_its_job_ends(environment: dict[str, str], tmp_path: Path) -> None:
    with served(tmp_path, {**environment, "LEASE_SECONDS": "2"}) as service:
        service.wait_ready()
        worker = service.worker()
        body = {**BODY, "options": {"steps": 100, "seed": 12}}
        adapter = service.http.post("/adapt", json=body).json()["adapter_id"]
        while service.http.get(f"/adapters/{adapter}").json()["status"] == "queued":
            time.sleep(0.002)
        worker.kill()
        assert adapt(service, body, wait=60).json() == {
            "adapter_id": adapter,
            "status": "ready",
            "truncated": [],
            "warnings": WARNINGS,
        }
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
        adapter = service.http.post("/adapt", json=body).json()["adapter_id"]
        while service.http.get(f"/adapters/{adapter}").json()["status"] == "queued":
            time.sleep(0.002)
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
        for wrong, message in (
            (("retry",), "expected either jobs, as `quickstudy jobs dead` names them, or --all"),
            (("retry", adapter), f"JOB: expected TENANT/ADAPTER as `quickstudy jobs dead` names it, got '{adapter}'"),
            (("drop", "default/a0"), "default/a0 is not a dead job"),
            (("retry", "default/a0"), "default/a0 is not a dead job"),
        ):
            refused = jobs(environment, data, *wrong)
            assert refused.returncode == 1 and refused.stderr == f"error: {message}\n"
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


@pytest.mark.parametrize(
    "stop",
    [pytest.param(signal.SIGINT, marks=pytest.mark.long), pytest.param(signal.SIGTERM, marks=pytest.mark.long), signal.SIGKILL],
)
def test_a_stopped_or_killed_service_leaves_no_process_running(
    environment: dict[str, str], tmp_path: Path, stop: signal.Signals
) -> None:
    with served(tmp_path, environment) as service:
        service.wait_ready()
        family = service.family()
        assert any("valkey-server" in part for p in family for part in p.cmdline())
        assert any(map(is_worker, family))
        service.process.send_signal(stop)
        service.process.wait(30)
        gone, alive = psutil.wait_procs(family, timeout=10)
        assert not alive and len(gone) == len(family)


def test_a_service_stopped_before_it_is_ready_leaves_no_process_running(environment: dict[str, str], tmp_path: Path) -> None:
    with served(tmp_path, environment) as service:
        deadline = time.monotonic() + 30
        while not (family := service.family()) and time.monotonic() < deadline:
            time.sleep(0.02)
        service.process.terminate()
        service.process.wait(30)
        assert not psutil.wait_procs(family, timeout=10)[1]


def test_killing_make_serve_ends_the_service(environment: dict[str, str], tmp_path: Path) -> None:
    """Kill the parent process that `--tied` names, as if `make` were killed. The service must end too."""
    port = free_port()
    starter = "import os, subprocess, sys, time; parent = str(os.getpid()); "
    starter += "subprocess.Popen([parent if a == 'PARENT' else a for a in sys.argv[1:]]); time.sleep(600)"
    command = [
        sys.executable,
        "-c",
        starter,
        sys.executable,
        "-m",
        "service",
        "serve",
        "--tied",
        "PARENT",
        "--port",
        str(port),
    ]
    variables = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "CACHE_URL")}
    with (tmp_path / "service.log").open("wb") as log:
        outer = subprocess.Popen(
            [*command, "--data-dir", str(tmp_path / "data")], env={**variables, **environment}, cwd=ROOT, stdout=log, stderr=log
        )
    service = Served(outer, f"http://127.0.0.1:{port}", tmp_path / "service.log")
    service.wait_ready()
    family = service.family()
    assert len(family) == 3
    service.http.close()
    outer.kill()
    outer.wait()
    assert not psutil.wait_procs(family, timeout=20)[1]


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


def test_a_job_interrupted_by_a_kill_is_finished_after_the_next_start(environment: dict[str, str], tmp_path: Path) -> None:
    body = {**BODY, "options": {"steps": 100, "seed": 31}}
    with served(tmp_path, {**environment, "LEASE_SECONDS": "2"}) as service:
        service.wait_ready()
        adapter = service.http.post("/adapt", json=body).json()["adapter_id"]
        while service.http.get(f"/adapters/{adapter}").json()["status"] == "queued":
            time.sleep(0.002)
        for process in [*service.family(), psutil.Process(service.process.pid)]:
            process.kill()
        service.process.wait()
    left_behind = Path((tmp_path / "data" / "url").read_text().removeprefix("unix://")).parent
    assert left_behind.is_dir()
    with served(tmp_path, {**environment, "LEASE_SECONDS": "2"}) as service:
        service.wait_ready()
        assert not left_behind.exists()
        assert adapt(service, body, wait=60).json() == {
            "adapter_id": adapter,
            "status": "ready",
            "truncated": [],
            "warnings": WARNINGS,
        }
        assert service.http.get(f"/adapters/{adapter}").json()["attempt"] == 2


def test_a_stopping_service_answers_waiting_requests_immediately(environment: dict[str, str], tmp_path: Path) -> None:
    with served(tmp_path, environment) as service:
        service.wait_ready()
        worker = service.worker()
        worker.suspend()
        adapter = service.http.post("/adapt", json=BODY).json()["adapter_id"]
        with ThreadPoolExecutor(2) as pool:
            answer = pool.submit(adapt, service, BODY, wait=50)
            stream = pool.submit(httpx.get, f"{service.url}/adapters/{adapter}/events", timeout=60)
            time.sleep(0.5)
            service.process.terminate()
            response, events = answer.result(10), stream.result(10).text
        worker.resume()
        assert events.count("event: status") == 1 and '"queued"' in events and "event: end" not in events
        assert (response.status_code, response.json()["status"]) == (202, "queued")
        assert service.process.wait(30) == 0


def test_records_and_weights_survive_a_kill_in_the_data_folder(environment: dict[str, str], tmp_path: Path) -> None:
    with served(tmp_path, environment) as service:
        service.wait_ready()
        adapter = identity(service, BODY)
        before = predict(service, adapter, ["order pizza"]).json()
        service.process.kill()
        service.process.wait()
    with served(tmp_path, environment) as service:
        service.wait_ready()
        assert predict(service, adapter, ["order pizza"]).json() == before


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
    missing = failed_start({**environment, "BASE_MODEL": "./nowhere"}, "--port", "0", "--data-dir", str(tmp_path / "e"))
    assert "error: base.model: no folder at './nowhere'" in missing
