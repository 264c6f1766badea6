"""One embedded service for all end-to-end tests of the client.

It has the tiny base model, an initialization named `default`, and a small limit on the inputs per request.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from metatrain.artifacts.baselines import lora_from_zero
from metatrain.artifacts.initialization import save_initialization
from metatrain.models.base import Base
from tests.end_to_end.conftest import Served, served

MAX_INPUTS = 20


@pytest.fixture(scope="package")
def service(environment: dict[str, str], tiny: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("client")
    initializations = Path(shutil.copytree(environment["INITIALIZATIONS_DIR"], folder / "initializations"))
    init = replace(lora_from_zero(tiny), name="default")
    save_initialization(init, initializations / "default", tiny.attach(init.delta))
    settings = {"INITIALIZATIONS_DIR": str(initializations), "MAX_INPUTS": str(MAX_INPUTS)}
    with served(folder, environment | settings) as running:
        running.wait_ready(180)
        yield running
