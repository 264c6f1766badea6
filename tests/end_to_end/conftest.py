"""Real processes: `quickstudy serve`, embedded or on a server of the test's own, with the tiny base model."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest

from metatrain.artifact import save_initialization
from metatrain.base.text import TextBase
from metatrain.baselines import lora_from_zero
from metatrain.inner import HardSteps, InnerConfig

ROOT = Path(__file__).resolve().parents[2]


class Served:
    """A service process and a client of it."""

    def __init__(self, process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log
        self.http = httpx.Client(base_url=url, timeout=60)

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

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
        raise AssertionError(f"the service is not ready:\n{self.log.read_text()[-4000:]}")

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
    port, log = free_port(), folder / "service.log"
    command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port), "--data-dir", str(folder / "data")]
    inherited = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "CACHE_URL")}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env={**inherited, **environment}, cwd=ROOT, stdout=output, stderr=output)
    running = Served(process, f"http://127.0.0.1:{port}", log)
    try:
        yield running
    finally:
        running.stop()


def save_contrastive_initializations(folder: Path, tiny: TextBase) -> None:
    """`contrastive`: no steps for one example of each label, three from two on, prototypes refined by two head steps; `asking`: the
    same, but seven steps for support sets of which half the examples are nearer to another label."""
    init = lora_from_zero(tiny)
    content = {"objective": {"supervised_contrastive": 1}, "head": "prototypes", "head_steps": 2, "steps": 3}
    inner = InnerConfig.model_validate({**content, "steps_by_shots": {1: 0, 2: 3}})
    asking = inner.model_copy(update={"hard_steps": HardSteps(shots=3, below=0.5, steps=7)})
    for name, loop in (("contrastive", inner), ("asking", asking)):
        save_initialization(replace(init, name=name, inner=loop), folder / name, tiny.attach(init.delta))


@pytest.fixture(scope="session")
def environment(tiny_folder: Path, tiny: TextBase, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    initializations = tmp_path_factory.mktemp("initializations")
    save_contrastive_initializations(initializations, tiny)
    return {
        "BASE_MODEL": str(tiny_folder),
        "INITIALIZATIONS_DIR": str(initializations),
        "PRECISION": "float32",
        "THREADS": "1",
        "MAX_BODY_BYTES": "100000",
        "MAX_EXAMPLES": "50",
    }


@pytest.fixture(scope="module")
def service(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The embedded default."""
    with served(tmp_path_factory.mktemp("served"), environment) as running:
        running.wait_ready()
        yield running
