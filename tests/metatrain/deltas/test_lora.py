from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModel

from metatrain.artifacts.baselines import lora_from_zero
from metatrain.artifacts.initialization import save_initialization
from metatrain.deltas import LoRA, LoRAConfig, delta_scope
from metatrain.errors import BaseModelError, UnsupportedDelta
from metatrain.models.base import Base
from metatrain.models.inputs import TextInputs, TextSpec
from metatrain.models.loading import load_base
from metatrain.serving.probe import probe
from tests.tiny import joined, save_tiny_model

TEXTS = ["i want to close my account", "order pizza", "please book a table today now"]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_probe_passes_lora(tiny_folder: Path, attention: Any) -> None:
    base = load_base(str(tiny_folder), precision="float32", attention=attention)
    probe(base, base.attach(LoRAConfig(targets=("query", "value", "output.dense"))))


def test_probe_passes_minilm_in_float32_and_bfloat16() -> None:
    for precision in ("float32", "bfloat16"):
        base = load_base(precision=cast(Any, precision))
        probe(base, base.attach(LoRAConfig()))


def test_probe_refuses_a_delta_without_effect(tiny: Base) -> None:
    """Probe LoRA on the pooler, which does not affect the features."""
    with pytest.raises(UnsupportedDelta, match="does not change the output"):
        probe(tiny, tiny.attach(LoRAConfig(targets=("pooler.dense",))))
    with pytest.raises(UnsupportedDelta, match=r"leaf pooler\.dense\.lora_A\.weight has no effect"):
        probe(tiny, tiny.attach(LoRAConfig(targets=("pooler.dense", "query"))))


def test_probe_refuses_a_model_whose_rows_depend_on_each_other(tiny: Base) -> None:
    class Leaky(nn.Module):
        """A model whose output for each row also depends on the other rows of the batch."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.config = inner, inner.config

        def get_input_embeddings(self) -> Any:
            return cast(Any, self.inner).get_input_embeddings()

        def forward(self, **inputs: Any) -> Any:
            output = self.inner(**inputs)
            output.last_hidden_state = output.last_hidden_state + 0.1 * output.last_hidden_state.mean(0, keepdim=True)
            return output

    leaky = joined(tiny, Leaky(tiny.model), attention="sdpa")
    with pytest.raises(UnsupportedDelta, match="differs from the same rows alone"):
        probe(leaky, leaky.attach(LoRAConfig(targets=("query",))))


def test_a_target_that_is_not_a_linear_layer_is_named(tiny: Base) -> None:
    with pytest.raises(
        UnsupportedDelta, match=r"delta\.targets: 'LayerNorm' must match nn\.Linear, .* modules of BertModel, matched LayerNorm"
    ):
        LoRA(LoRAConfig(targets=("LayerNorm",)), tiny.model)
    with pytest.raises(UnsupportedDelta, match="matched no module"):
        LoRA(LoRAConfig(targets=("q_proj",)), tiny.model)


def test_stock_peft_loads_our_files_with_equal_outputs(tiny_folder: Path, tiny: Base, tmp_path: Path) -> None:
    lora = tiny.attach(LoRAConfig(rank=3, alpha=12, targets=("query", "intermediate.dense")))
    theta = lora.initial(torch.Generator().manual_seed(3), b_std=0.3)
    plain = lora_from_zero(tiny)
    init = replace(plain, delta=lora.config, theta=theta, rates={}, name="x")
    save_initialization(init, tmp_path / "x", lora)
    stock = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_folder), tmp_path / "x").eval()
    batch = tiny.inputs.collate(tiny.inputs.encode(TEXTS))
    ours = tiny.features(lora.fold({n: t.unsqueeze(0) for n, t in theta.items()}), batch)
    theirs = joined(tiny, cast(nn.Module, stock.base_model.model), attention="sdpa").features(None, batch)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (ours - tiny.features(None, batch)).abs().max() > 1e-2


def test_the_delta_of_a_call_does_not_affect_other_calls(tiny: Base, lora: LoRA) -> None:
    batch = tiny.inputs.collate(tiny.inputs.encode(TEXTS))
    bare = tiny.features(None, batch)
    delta = lora.fold({n: t.unsqueeze(0) for n, t in lora.initial(torch.Generator().manual_seed(0), b_std=0.3).items()})
    with delta_scope(delta):
        assert torch.equal(tiny.features(None, batch), bare)  # the delta passed to the call replaces that of the enclosing scope
    assert torch.equal(tiny.features(None, batch), bare)
    assert not torch.equal(tiny.features(delta, batch), bare)


def test_checkpointed_forward_sees_its_delta_when_it_is_recomputed(tiny: Base, lora: LoRA) -> None:
    batch = tiny.inputs.collate(tiny.inputs.encode(TEXTS))
    theta = {n: t.unsqueeze(0).requires_grad_() for n, t in lora.initial(torch.Generator().manual_seed(0), b_std=0.3).items()}
    weights = torch.randn(3, tiny.hidden_size, generator=torch.Generator().manual_seed(1))

    def score(*leaves: torch.Tensor) -> torch.Tensor:
        return (tiny.features(lora.fold(dict(zip(theta, leaves, strict=True))), batch) * weights).sum()

    plain = torch.autograd.grad(score(*theta.values()), list(theta.values()))
    recomputed = torch.utils.checkpoint.checkpoint(score, *theta.values(), use_reentrant=False)
    for a, b in zip(plain, torch.autograd.grad(recomputed, list(theta.values())), strict=True):
        torch.testing.assert_close(a, b)


def test_missing_and_unknown_base_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metatrain.models.source.KNOWN_WEIGHTS", {str(tmp_path / "tiny"): "0" * 64})
    with pytest.raises(BaseModelError, match=r"no folder at '\./nowhere'"):
        load_base("./nowhere")
    with pytest.raises(BaseModelError, match=r"no \.safetensors file"):
        load_base(str(tmp_path))
    save_tiny_model(tmp_path / "tiny")
    with pytest.raises(BaseModelError, match=r"have sha256 .* expected 0000"):
        load_base(str(tmp_path / "tiny"))


def test_bfloat16_features_stay_close_to_float32() -> None:
    float32, bfloat16 = load_base(precision="float32"), load_base(precision="bfloat16")
    assert isinstance(float32.spec, TextSpec) and bfloat16.dtype == torch.bfloat16
    batch = float32.inputs.collate(float32.inputs.encode(TEXTS))
    cosine = (float32.features(None, batch) * bfloat16.features(None, batch)).sum(-1)
    assert bfloat16.features(None, batch).dtype == torch.float32
    assert (cosine > 0.999).all()


def test_long_texts_are_truncated_and_marked(tiny: Base) -> None:
    long, short = cast(TextInputs, tiny.inputs).encode(["pizza " * 200, "pizza"])
    assert long.truncated and not short.truncated
    assert len(long) == tiny.spec.max_length == 64
    assert long.ids[-1] == short.ids[-1]  # the closing token stays


def test_buckets_change_nothing_but_padding(tiny: Base, lora: LoRA) -> None:
    texts = ["pizza " * n for n in (12, 40, 14, 38, 15, 15, 14, 41, 12, 11, 13, 12)]
    ids = tiny.inputs.encode(texts)
    theta = {n: torch.stack([t, t * 0.5]) for n, t in lora.initial(torch.Generator().manual_seed(0), b_std=0.3).items()}
    batch = tiny.inputs.collate(ids, groups=2)
    assert len(batch.parts) > 1
    together = tiny.features(lora.fold(theta), batch)
    for i, row in enumerate(ids):
        alone = tiny.features(lora.fold({n: t[i // 6 : i // 6 + 1] for n, t in theta.items()}), tiny.inputs.collate([row]))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)
