"""A service with PREDICTOR_URL loads no weights of base models."""

import time
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from metatrain.errors import BaseModelError
from metatrain.models.loading import load_base
from tests.conftest import RedisServer
from tests.end_to_end.conftest import served


def test_a_service_with_a_separate_predictor_starts_without_usable_weights(
    redis_server: RedisServer, tiny_folder: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_folder.iterdir():
        if file.suffix == ".safetensors":
            save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(file).items()}, model / file.name)
        else:
            (model / file.name).write_bytes(file.read_bytes())
    variables = {"BASE_MODEL": str(model), "PRECISION": "float32", "THREADS": "1", "REDIS_URL": redis_server.url}

    with served(tmp_path, {**variables, "PREDICTOR_URL": f"unix://{tmp_path}/predictor.sock"}) as service:
        deadline = time.monotonic() + 60
        while True:
            try:
                views = service.http.get("/initializations").json()["initializations"]
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline and service.process.poll() is None, service.log.read_text()
                time.sleep(0.1)
        assert {view["name"] for view in views} == {"frozen-prototypes", "lora-from-zero"}
        assert service.http.get("/readyz").json()["missing"] == ["worker", "predictor"]
        long = {"input": "order pizza now " * 100, "label": "order"}
        body = {"support": [long, {"input": "close my card", "label": "close"}], "initialization": "lora-from-zero"}
        answer = service.http.post("/adapt", json=body)
        assert answer.status_code == 202 and answer.json()["truncated"] == [0]

    with pytest.raises(BaseModelError, match="has NaN or infinite numbers"):  # so a service that loads these weights does not start
        load_base(str(model), precision="float32")
