"""Attention is fused where the architecture has it, and never another than was asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch

from metatrain.artifacts.baselines import frozen_prototypes, lora_from_zero
from metatrain.errors import BaseModelError
from metatrain.models.loading import describe_base, load_base
from metatrain.serving.probe import probe
from tests.tiny import ARCHITECTURES, DECODERS, WITHOUT_SDPA, save_tiny_model

CPU = torch.device("cpu")
TEXTS = ["order pizza", "i want to close my account now please", "refund the ticket " * 40]


@pytest.fixture(scope="module", params=WITHOUT_SDPA)
def without(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp(request.param), architecture=request.param))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_architecture_without_fused_attention_loads_with_eager_attention(without: str, precision: Any) -> None:
    base = load_base(without, precision=precision, device=CPU)
    assert base.attention == "eager" and base.model.config._attn_implementation == "eager"  # type: ignore[union-attr]
    asked = load_base(without, precision=precision, device=CPU, attention="eager")
    found = [each.features(None, each.inputs.collate(each.inputs.encode(TEXTS))) for each in (base, asked)]
    assert torch.equal(*found)
    assert base.digest == asked.digest == describe_base(without, precision=precision, device=CPU).digest


def test_fused_attention_that_was_asked_for_is_refused_where_there_is_none(without: str) -> None:
    with pytest.raises(BaseModelError, match="does not support") as error:
        load_base(without, precision="float32", device=CPU, attention="sdpa")
    assert "scaled_dot_product_attention" in str(error.value) and str(error.value).isprintable()


def test_initializations_without_training_work_on_it(without: str) -> None:
    base = load_base(without, precision="float32", device=CPU)
    for initialization in (frozen_prototypes(base), lora_from_zero(base)):
        probe(base, base.attach(initialization.delta))


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *DECODERS])
def test_an_architecture_with_fused_attention_uses_it(tmp_path: Path, architecture: str) -> None:
    folder = str(save_tiny_model(tmp_path, architecture=architecture))
    base = load_base(folder, precision="float32", device=CPU)
    assert base.attention == "sdpa" and base.model.config._attn_implementation == "sdpa"  # type: ignore[union-attr]
    assert load_base(folder, precision="bfloat16", device=CPU).attention == "eager"
