"""Real `quickstudy serve` processes with the tiny base model, with an embedded or a separate Redis."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from service.running.standalone import WORKER_NAME, url_of
from tests.warm import Forked, warm

ROOT = Path(__file__).resolve().parents[2]


def is_worker(process: psutil.Process) -> bool:
    return process.name() == WORKER_NAME or "worker" in process.cmdline()


class Served:
    """A service process and an HTTP client for it."""

    def __init__(self, process: "subprocess.Popen[bytes] | Forked", url: str, log: Path) -> None:
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

    def terminate(self) -> None:
        """Stop the service as a user does. Its worker then no longer counts as alive at the next start."""
        self.process.terminate()
        self.process.wait(30)

    def stop(self) -> None:
        """Kill the service if it still runs, and remove the folder of its socket.

        The kernel then kills its children.
        """
        self.http.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            if (url := url_of(self.log.parent / "data")) is not None:
                shutil.rmtree(Path(url.removeprefix("unix://")).parent, ignore_errors=True)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(folder: Path, environment: dict[str, str], *, forked: bool = True) -> Iterator[Served]:
    """Run a service that stores its data in `folder`. Yield it at once, even if it is not ready yet.

    With `forked`, it is a fork of a process that has done the imports. Otherwise it is started as a user starts it.
    """
    port, log = free_port(), folder / "service.log"
    arguments = ["serve", "--port", str(port), "--data-dir", str(folder / "data")]
    inherited = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "CACHE_URL")}
    log.write_bytes(b"")
    process = start_module("service", *arguments, environment={**inherited, **environment}, log=log, forked=forked)
    running = Served(process, f"http://127.0.0.1:{port}", log)
    try:
        yield running
    finally:
        running.stop()


def start_module(
    module: str, *arguments: str, environment: dict[str, str], log: Path, forked: bool = True
) -> "subprocess.Popen[bytes] | Forked":
    """Run `python -m module` with this environment, as a fork or in a new interpreter.

    Its output is appended to `log`.
    """
    if forked:
        return warm().start(module, *arguments, environment=environment, log=log)
    with log.open("ab") as output:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=output)


@pytest.fixture(scope="module")
def service(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run the embedded service with its default settings."""
    with served(tmp_path_factory.mktemp("served"), environment) as running:
        running.wait_ready()
        yield running
