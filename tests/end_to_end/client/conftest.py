"""One embedded service for all end-to-end tests of the client.

It has a tiny base model that spells unknown words, an initialization named `default`, and a small limit on the inputs per request.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from metatrain.artifacts.baselines import lora_from_zero
from metatrain.artifacts.initialization import save_initialization
from metatrain.models.loading import load_base
from tests.conftest import save_contrastive_initializations
from tests.end_to_end.conftest import Served, served
from tests.tiny import save_tiny_model

MAX_INPUTS = 20


@pytest.fixture(scope="package")
def service(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("client")
    base_folder, initializations = str(save_tiny_model(folder / "base", spells=True)), folder / "initializations"
    base = load_base(base_folder, precision="float32", device=torch.device("cpu"))
    initializations.mkdir()
    save_contrastive_initializations(initializations, base)
    init = replace(lora_from_zero(base), name="default")
    save_initialization(init, initializations / "default", base.attach(init.delta))
    settings = {"BASE_MODEL": base_folder, "INITIALIZATIONS_DIR": str(initializations), "MAX_INPUTS": str(MAX_INPUTS)}
    with served(folder, environment | settings) as running:
        running.wait_ready(180)
        yield running
