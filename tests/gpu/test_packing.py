"""Packed rows on a GPU, where the kernel for rows of unequal length computes attention."""

from pathlib import Path
from typing import Any

import pytest
import torch

from metatrain.deltas import LoRAConfig, attention
from metatrain.deltas.lora import query_and_value
from metatrain.models.batch import Pack
from metatrain.models.loading import load_base
from tests.tiny import ARCHITECTURES, DECODERS, WORDS, save_tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TEXTS = [" ".join(WORDS.split()[3 * n : 4 * n + 1]) for n in (1, 9, 2, 12, 1, 5, 8, 3)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *DECODERS])
def test_packed_rows_have_the_features_of_padded_ones(
    tmp_path: Path, architecture: str, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[bool] = []

    def recorded(*args: Any) -> Any:
        used.append(True)
        return original(*args)

    original = attention._variable_length_attention
    monkeypatch.setattr(attention, "_variable_length_attention", recorded)
    folder = str(save_tiny_model(tmp_path, architecture=architecture))
    base = load_base(folder, precision=precision, device=torch.device("cuda"))
    assert base.backbone.packs
    kind = base.attach(LoRAConfig(rank=8, targets=query_and_value(base.parameter_shapes)))
    draw = torch.Generator().manual_seed(0)
    thetas = [kind.initial(draw, b_std=0.3) for _ in range(3)]
    delta = kind.fold({name: torch.stack([theta[name] for theta in thetas]).cuda() for name in kind.shapes})
    rows, slots = base.inputs.encode(TEXTS), [0, 0, 1, 2, 2, 1, 0, 2]
    used.clear()
    with torch.no_grad():
        packed, padded = (base.features(delta, base.inputs.collate(rows, packed=packed), slots=slots) for packed in (True, False))
    assert isinstance(base.collate(rows).parts[0], Pack)
    if architecture != "modernbert":  # its sliding windows are computed in blocks
        assert bool(used) == (precision == "bfloat16" and base.attention == "sdpa")
    torch.testing.assert_close(packed, padded, rtol=0, atol=2e-5 if precision == "float32" else 3e-2)
