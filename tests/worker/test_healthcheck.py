"""The health check of a worker's container."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import redis

from tests.conftest import RedisServer
from tests.end_to_end.conftest import ROOT
from worker.healthcheck import problem
from worker.ledger.workers import Workers
from worker.name import on_this_host, worker_name
from worker.settings import WorkerSettings


def test_names_of_other_hosts_are_not_of_this_one() -> None:
    host = socket.gethostname()
    names = [f"{host}-7", f"{host}-x-7", f"x{host}-7", f"{host}-7x", worker_name()]
    assert on_this_host(names) == [f"{host}-7", worker_name()]


def test_a_worker_is_healthy_while_its_announcement_lasts(redis_server: RedisServer, redis_client: "redis.Redis") -> None:
    settings, workers = WorkerSettings(redis_url=redis_server.url), Workers(redis_client)
    assert problem(settings) == "no worker on this host announced itself lately (0 elsewhere did)"
    workers.announce("elsewhere-1", {}, 60)
    assert problem(settings) == "no worker on this host announced itself lately (1 elsewhere did)"
    workers.announce(worker_name(), {}, 60)
    assert problem(settings) is None
    workers.announce(worker_name(), {}, 0)  # ends at once, as after a worker's death
    assert problem(settings) is not None
    redis_server.stop()
    assert problem(settings) == "the records cannot be reached: ConnectionError"


def test_the_command_reads_the_settings_and_reveals_no_password(
    redis_server: RedisServer, redis_client: "redis.Redis", tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("secret-word")
    redis_client.config_set("requirepass", "secret-word")
    Workers(redis_client).announce(worker_name(), {}, 60)
    environment = {**os.environ, "REDIS_URL": redis_server.url, "REDIS_PASSWORD_FILE": str(tmp_path / "password")}

    def run() -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "worker.healthcheck"]
        return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)

    healthy = run()
    assert (healthy.returncode, healthy.stdout, healthy.stderr) == (0, "", "")
    redis_client.config_set("requirepass", "another")
    refused = run()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "error: the records cannot be reached: AuthenticationError\n"
