"""Real `quickstudy serve` processes with the tiny base model, with an embedded or a separate Redis."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from service.running.standalone import WORKER_NAME

ROOT = Path(__file__).resolve().parents[2]


def is_worker(process: psutil.Process) -> bool:
    return process.name() == WORKER_NAME or "worker" in process.cmdline()


class Served:
    """A service process and an HTTP client for it."""

    def __init__(self, process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log
        self.http = httpx.Client(base_url=url, timeout=60)

    def family(self) -> list[psutil.Process]:
        """Return all processes that descend from the service."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def worker(self) -> psutil.Process:
        """Return the process of the embedded worker.

        The first worker is a fork of the service. A restarted worker is a new `python -m worker`.
        """
        (worker,) = [child for child in self.family() if is_worker(child)]
        return worker

    def wait_ready(self, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                if self.http.get("/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"the service ended or was not ready within {seconds:g} s:\n{self.log.read_text()[-4000:]}")

    def stop(self) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(folder: Path, environment: dict[str, str]) -> Iterator[Served]:
    """Run a service that stores its data in `folder`. Yield it at once, even if it is not ready yet."""
    port, log = free_port(), folder / "service.log"
    command = [sys.executable, "-m", "service", "serve", "--port", str(port), "--data-dir", str(folder / "data")]
    inherited = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "CACHE_URL")}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env={**inherited, **environment}, cwd=ROOT, stdout=output, stderr=output)
    running = Served(process, f"http://127.0.0.1:{port}", log)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def service(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run the embedded service with its default settings."""
    with served(tmp_path_factory.mktemp("served"), environment) as running:
        running.wait_ready()
        yield running
