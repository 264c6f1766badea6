"""The description of a base model agrees with the loaded one, and holds no weights."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from metatrain.artifacts.adapter import adapter_bytes_at_most
from metatrain.artifacts.baselines import frozen_prototypes, lora_from_zero
from metatrain.artifacts.catalog import load_catalog
from metatrain.artifacts.initialization import load_initialization, save_initialization
from metatrain.artifacts.stored_initialization import initialization_from_bytes, initialization_to_bytes
from metatrain.deltas import LoRAConfig
from metatrain.errors import BaseModelError, UnsupportedDelta
from metatrain.models.base import Base
from metatrain.models.description import UnloadedBase
from metatrain.models.loading import describe_base, load_base
from tests.metatrain.deltas.test_deltas import KINDS, config_for
from tests.tiny import ARCHITECTURES, save_tiny_model

CPU = torch.device("cpu")
TEXTS = ["order pizza", "i want to close my account now please " * 30]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Base, UnloadedBase]:
    folder = str(save_tiny_model(tmp_path_factory.mktemp(request.param), architecture=request.param))
    loaded = load_base(folder, precision="float32", device=CPU)
    return request.param, loaded, describe_base(folder, precision="float32", device=CPU)


def test_they_have_the_same_identity_and_shapes(both: tuple[str, Base, UnloadedBase]) -> None:
    _, loaded, described = both
    assert described.spec == loaded.spec and described.digest == loaded.digest and described.precision == loaded.precision
    assert described.hidden_size == loaded.hidden_size and described.parameter_shapes == loaded.parameter_shapes
    assert len(described.parameter_shapes) > 10
    rows = described.inputs.encode(TEXTS)
    assert rows == loaded.inputs.encode(TEXTS) and [row.truncated for row in rows] == [False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_they_have_the_same_deltas(both: tuple[str, Base, UnloadedBase], kind: str) -> None:
    architecture, loaded, described = both
    config = config_for(kind, architecture)
    one, other = loaded.attach(config), described.attach(config)
    assert one.shapes == other.shapes and one.lowest_layer == other.lowest_layer and one.counts == other.counts
    assert (one.peft is None) == (other.peft is None)
    if one.peft is not None and other.peft is not None:
        assert one.peft.essentials == other.peft.essentials and one.peft.shapes == other.peft.shapes
    drawn, again = (each.initial(torch.Generator().manual_seed(1), b_std=0.1) for each in (one, other))
    assert drawn.keys() == again.keys() and all(torch.equal(drawn[name], again[name]) for name in drawn)
    assert all(leaf.device == CPU for leaf in again.values())


def test_a_delta_that_does_not_fit_is_refused_by_both(tiny: Base, tiny_folder: Path) -> None:
    described = describe_base(str(tiny_folder), precision="float32", device=CPU)
    for base in (tiny, described):
        with pytest.raises(UnsupportedDelta, match="nowhere"):
            cast(Any, base).attach(LoRAConfig(targets=("nowhere",)))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_digest_depends_on_the_precision_as_that_of_the_loaded_model(tiny_folder: Path, precision: Any) -> None:
    loaded = load_base(str(tiny_folder), precision=precision, device=CPU, max_length=16)
    described = describe_base(str(tiny_folder), precision=precision, device=CPU, max_length=16)
    assert described.digest == loaded.digest and described.precision == precision


def test_initializations_are_read_with_the_same_digests(tiny: Base, environment: dict[str, str], tmp_path: Path) -> None:
    described = describe_base(environment["BASE_MODEL"], precision="float32", device=CPU)
    folder = Path(environment["INITIALIZATIONS_DIR"])
    catalogs = [load_catalog(base, folder, baselines=[frozen_prototypes(base), lora_from_zero(base)]) for base in (tiny, described)]
    digests = [{name: init.digest for name, init in catalog.items()} for catalog in catalogs]
    assert digests[0] == digests[1] and len(digests[0]) == 5
    sizes = [adapter_bytes_at_most(catalogs[0]["contrastive"], ("a", "b"), base.hidden_size) for base in (tiny, described)]
    assert sizes[0] == sizes[1]

    update = {"encoder.layer.1.output.dense.bias": torch.ones(32)}
    moved = replace(lora_from_zero(tiny), name="moved", base_update=update)
    save_initialization(moved, tmp_path / "moved", tiny.attach(moved.delta))
    assert load_initialization(tmp_path / "moved", described).digest == moved.digest
    assert initialization_from_bytes(initialization_to_bytes(moved), described, moved.digest).digest == moved.digest


def test_of_the_weights_only_names_and_shapes_are_read_besides_their_digest(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path, dirs_exist_ok=True)
    content = (tmp_path / "model.safetensors").read_bytes()
    data = 8 + int.from_bytes(content[:8], "little")
    (tmp_path / "model.safetensors").write_bytes(content[:data] + b"\xff" * (len(content) - data))  # every value is NaN
    described, intact = (describe_base(str(folder), precision="float32", device=CPU) for folder in (tmp_path, tiny_folder))
    assert described.spec.weights_sha256 == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert described.parameter_shapes == intact.parameter_shapes and described.digest != intact.digest
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    for read in (describe_base, load_base):
        with pytest.raises(BaseModelError, match="not a complete safetensors file"):
            read(str(tmp_path), precision="float32", device=CPU)


def test_a_loaded_model_is_no_architecture_without_weights(tiny: Base) -> None:
    with pytest.raises(ValueError, match="meta device"):
        UnloadedBase(tiny.model, tiny.inputs, "float32")
