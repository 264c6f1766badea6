"""Packed rows have the features and derivatives of padded rows, in every architecture that packs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import ModernBertConfig, ModernBertModel, Qwen3Config, Qwen3Model

from metatrain.deltas import BottleneckConfig, IA3Config, LoRAConfig, PrefixConfig, PromptConfig
from metatrain.deltas.packing import packing
from metatrain.errors import UnsupportedDelta
from metatrain.inner.problem import stack
from metatrain.models.base import Base
from metatrain.models.batch import Bucket, Pack
from metatrain.models.inputs.augment import Augmentation
from metatrain.models.loading import load_base
from tests.tiny import ARCHITECTURES, DECODERS, WITHOUT_SDPA, WORDS, joined, save_tiny_model

CPU = torch.device("cpu")
TEXTS = [" ".join(WORDS.split()[3 * n : 4 * n + 1]) for n in (1, 9, 2, 12, 1, 5, 8, 3)]
TOKENWISE = [
    LoRAConfig(rank=2, alpha=4),
    IA3Config(targets=("key", "value", "intermediate.dense")),
    BottleneckConfig(rank=3, targets=("output.dense",)),
]


def both(base: Base, delta: Any = None, *, slots: list[int] | None = None) -> list[Tensor]:
    """Return the features of packed and of padded rows."""
    assert base.backbone.packs
    rows = base.inputs.encode(TEXTS)
    batches = [base.inputs.collate(rows, packed=packed) for packed in (True, False)]
    return [base.features(delta, batch, slots=slots) for batch in batches]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *DECODERS, "gemma2"])
def test_an_architecture_is_packed(tmp_path: Path, architecture: str, precision: Any) -> None:
    base = load_base(str(save_tiny_model(tmp_path, architecture=architecture)), precision=precision, device=CPU)
    assert base.backbone.packs
    assert all(isinstance(part, Pack) for part in base.collate(base.inputs.encode(TEXTS)).parts)
    packed, padded = both(base)
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-6 if precision == "float32" else 3e-2)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_a_text_may_contain_the_padding_token(tmp_path: Path, architecture: str) -> None:
    base = load_base(str(save_tiny_model(tmp_path, architecture=architecture)), precision="float32", device=CPU)
    assert base.backbone.packs
    padding = base.inputs.tokenizer.pad_token  # type: ignore[attr-defined]
    rows = base.inputs.encode([f"order {padding} pizza {padding} now please", "close my account", padding, f"stop {padding}"])
    rows = [*rows, None]
    packed, padded = (base.features(None, base.inputs.collate(rows, packed=packed)) for packed in (True, False))
    assert all(isinstance(part, Pack) for part in base.collate(rows).parts)
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture", [name for name in WITHOUT_SDPA if name != "gemma2"])
def test_an_architecture_with_its_own_attention_is_padded(
    tmp_path: Path, architecture: str, caplog: pytest.LogCaptureFixture
) -> None:
    base = load_base(str(save_tiny_model(tmp_path, architecture=architecture)), precision="float32", device=CPU)
    with caplog.at_level("INFO"):
        assert not base.backbone.packs
        assert not base.backbone.packs
    expected = f"{type(base.model).__name__} runs on padded rows: its eager attention cannot be replaced"
    assert caplog.messages == [expected]
    assert all(isinstance(part, Bucket) for part in base.collate(base.inputs.encode(TEXTS)).parts)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_sliding_window_counts_within_each_row(tiny: Base, attention: Any) -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 3}
    shape |= {"num_attention_heads": 4, "intermediate_size": 48}
    special: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    encoder = ModernBertModel(ModernBertConfig(**shape, **special, local_attention=6, initializer_range=0.3))
    windows: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1, "head_dim": 8}
    decoder = Qwen3Model(Qwen3Config(**shape, **windows, num_key_value_heads=2, initializer_range=0.3))
    for model in (encoder, decoder):
        model.set_attn_implementation(attention)
        base = joined(tiny, model, attention=attention)
        packed, padded = both(base)
        torch.testing.assert_close(packed, padded, rtol=0, atol=2e-6)


@pytest.mark.parametrize("config", TOKENWISE, ids=lambda config: config.kind)
@pytest.mark.parametrize("slots", [[0, 0, 1, 1, 1, 2, 3, 3], [3, 1, 3, 1, 0, 0, 2, 0], [2] * 8])
def test_rows_use_the_delta_of_their_slot(tiny: Base, config: Any, slots: list[int]) -> None:
    kind = tiny.attach(config)
    draw = torch.Generator().manual_seed(1)
    thetas = [kind.initial(draw, b_std=0.3) for _ in range(4)]
    delta = kind.fold({name: torch.stack([theta[name] for theta in thetas]) for name in kind.shapes})
    packed, padded = both(tiny, delta, slots=slots)
    torch.testing.assert_close(packed, padded, rtol=0, atol=2e-6)
    rows = tiny.inputs.encode(TEXTS)
    for row, (encoded, slot) in enumerate(zip(rows, slots, strict=True)):
        alone = tiny.features(kind.fold(stack(thetas[slot], 1)), tiny.collate([encoded]))[0]
        torch.testing.assert_close(packed[row], alone, rtol=0, atol=2e-6)


@pytest.mark.parametrize("config", TOKENWISE, ids=lambda config: config.kind)
@pytest.mark.parametrize("most_tokens", [2048, 16])
def test_second_derivatives_are_those_of_padded_rows(
    tiny64: Base, config: Any, most_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metatrain.models.inputs.text._PACK_TOKENS", most_tokens)
    assert tiny64.backbone.packs
    kind = tiny64.attach(config)
    theta = kind.initial(torch.Generator().manual_seed(2), b_std=0.3)
    found = []
    for packed in (True, False):
        live = {name: leaf.double().expand(2, *leaf.shape).clone().requires_grad_() for name, leaf in theta.items()}
        batch = tiny64.inputs.collate(tiny64.inputs.encode(TEXTS), 2, packed=packed)
        assert len(batch.parts) > 1 or most_tokens > 16 or not packed
        score = tiny64.features(kind.fold(live), batch)[:, :7].sin().sum()
        first = torch.autograd.grad(score, list(live.values()), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), list(live.values()))  # type: ignore[arg-type]
        found.append((score, *first, *second))
    for packed_value, padded_value in zip(*found, strict=True):
        torch.testing.assert_close(packed_value, padded_value, rtol=1e-9, atol=1e-10)


def test_packed_rows_are_computed_in_parts_with_the_same_derivatives(tiny64: Base) -> None:
    kind = tiny64.attach(LoRAConfig(rank=2, alpha=4, targets=("query",), layers=(1,)))
    theta = {name: leaf.double() for name, leaf in kind.initial(torch.Generator().manual_seed(3), b_std=0.3).items()}
    batch = tiny64.backbone.below(tiny64.collate(tiny64.inputs.encode(TEXTS), 2), kind)
    assert all(isinstance(part, Pack) and part.lower is not None for part in batch.parts)
    found = []
    for rows_at_once in (1, 3, 100):
        live = {name: leaf.expand(2, *leaf.shape).clone().requires_grad_() for name, leaf in theta.items()}
        features = tiny64.backbone.features_recomputed(kind.fold(live), batch, rows_at_once=rows_at_once)
        found.append((features, *torch.autograd.grad(features.sin().sum(), list(live.values()))))
    for values in zip(*found, strict=True):
        for other in values[1:]:
            torch.testing.assert_close(other, values[0], rtol=1e-10, atol=1e-12)


def test_noise_reaches_the_tokens_of_its_row(tiny: Base) -> None:
    assert tiny.backbone.packs
    rows = tiny.inputs.encode(TEXTS)
    noisy = tiny.inputs.view(rows[1], Augmentation(kind="embedding_noise", strength=5.0), (0,))
    views = [rows[0], noisy, None, *rows[2:]]
    packed, padded = (tiny.features(None, tiny.inputs.collate(views, packed=packed)) for packed in (True, False))
    torch.testing.assert_close(packed, padded, rtol=0, atol=2e-6)
    assert not torch.allclose(packed[1], tiny.features(None, tiny.collate([rows[1]]))[0], atol=1e-3)


@pytest.mark.parametrize("config", [PrefixConfig(tokens=3), PromptConfig(tokens=3)], ids=lambda config: config.kind)
def test_virtual_tokens_are_padded_and_refused_in_packed_rows(tiny: Base, config: Any) -> None:
    kind = tiny.attach(config)
    delta, rows = kind.fold(stack(kind.initial(torch.Generator().manual_seed(0)), 1)), tiny.inputs.encode(TEXTS)
    assert not kind.per_token and isinstance(tiny.collate(rows, per_token=kind.per_token).parts[0], Bucket)
    with pytest.raises(UnsupportedDelta):
        tiny.features(delta, tiny.collate(rows))


def test_hidden_states_are_those_of_the_rows_alone(tiny: Base) -> None:
    rows = tiny.inputs.encode(TEXTS)
    together = tiny.backbone.hidden(None, tiny.collate(rows))
    assert together.offsets.tolist() == [0, *torch.tensor([len(row) for row in rows]).cumsum(0).tolist()]
    alone = [tiny.backbone.hidden(None, tiny.inputs.collate([row])).states for row in rows]
    torch.testing.assert_close(together.states, torch.cat(alone), rtol=0, atol=2e-5)


@pytest.mark.parametrize("lengths", [[4], [2, 2, 2], [1, 300, 2, 290, 3, 1], [500, 40, 40, 40, 40, 40, 40, 40, 1]])
def test_blocks_hold_each_token_once(lengths: list[int]) -> None:
    found, tokens = packing(lengths, CPU), torch.arange(sum(lengths)).unsqueeze(1)
    padded = [block.padded(tokens) for block in found.blocks]
    assert torch.equal(found.joined(padded), tokens)
    starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    for block, part in zip(found.blocks, padded, strict=True):
        for row, places in zip(block.rows, part[:, :, 0].tolist(), strict=True):
            own = range(starts[row], starts[row + 1])
            assert places[: len(own)] == list(own) and set(places) == set(own)
    assert sorted(row for block in found.blocks for row in block.rows) == list(range(len(lengths)))
