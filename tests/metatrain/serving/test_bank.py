"""The bank of adapters: a mixed batch equals each row computed alone, without a bank."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metatrain.artifacts.adapter import Adapter, AdapterMetadata
from metatrain.deltas import BottleneckConfig, HeadConfig, IA3Config, LoRAConfig, PrefixConfig, PromptConfig
from metatrain.errors import ArtifactError, UnsupportedDelta
from metatrain.models.base import Base
from metatrain.models.inputs.text import TextRow
from metatrain.models.loading import load_base
from metatrain.serving.bank import Bank, Packed, pack
from tests.tiny import ARCHITECTURES, WORDS, save_tiny_model

ATTENTION = {"bert": ("query", "value"), "roberta": ("query", "value"), "distilbert": ("q_lin", "v_lin"), "modernbert": ("Wqkv",)}
MLP = {"bert": "intermediate.dense", "roberta": "intermediate.dense", "distilbert": "lin1", "modernbert": "Wi"}
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 6e-2}  # for probabilities; random weights with std 0.3 spread them over 0 to 1


def configs(architecture: str) -> list[Any]:
    """Return configurations of every delta kind, with unequal ranks, layers and numbers of virtual tokens."""
    attention, mlp = ATTENTION[architecture], MLP[architecture]
    return [
        LoRAConfig(rank=2, alpha=4, targets=attention),
        LoRAConfig(rank=5, alpha=5, targets=(attention[0], mlp)),
        LoRAConfig(rank=3, alpha=3, targets=attention, layers=(1,)),
        BottleneckConfig(rank=3, targets=attention),
        BottleneckConfig(rank=4, targets=(mlp,)),
        IA3Config(targets=(*attention, mlp), feedforward=(mlp,)),
        PrefixConfig(tokens=3),
        PrefixConfig(tokens=5, layers=(0,)),
        PromptConfig(tokens=2),
        PromptConfig(tokens=4),
        HeadConfig(),
    ]


def make(base: Base, config: Any, classes: int, seed: int, initialization: str = "i") -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    metadata = AdapterMetadata(
        initialization_digest=initialization,
        base_weights_sha256=base.spec.weights_sha256,
        delta=config,
        scale=2.0 + seed % 7,
        labels=tuple(f"label {c}" for c in range(classes)),
    )
    theta = base.attach(config).initial(generator, b_std=0.3)
    weight = torch.nn.functional.normalize(torch.randn(classes, base.hidden_size, generator=generator), dim=-1)
    bias = 0.1 * torch.randn(classes, generator=generator)
    return Adapter(metadata, theta, {"head.weight": weight, "head.bias": bias})


def expected(base: Base, adapter: Adapter, ids: TextRow, updated: dict[str, Tensor] | None = None) -> Tensor:
    """Return the probabilities of one row with one adapter, computed without a bank."""
    kind = base.attach(adapter.metadata.delta)
    delta = kind.fold({n: t.unsqueeze(0) for n, t in adapter.delta.items()})
    with torch.no_grad():
        features = base.features(delta, base.inputs.collate([ids]), updated=updated or {})
    weight, bias = adapter.answering["head.weight"], adapter.answering["head.bias"]
    return torch.softmax(adapter.metadata.scale * (features @ weight.T + bias), -1)[0]


def text(words: int, start: int) -> str:
    known = WORDS.split()
    return " ".join(known[(start + i) % len(known)] for i in range(words))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save_tiny_model(tmp_path_factory.mktemp(name), architecture=name) for name in ARCHITECTURES}


Rows = st.lists(st.tuples(st.integers(0, 10), st.integers(1, 4), st.integers(1, 30)), min_size=1, max_size=12)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("examples", [10, pytest.param(50, marks=pytest.mark.long)])
def test_a_mixed_batch_equals_each_row_alone(
    folders: dict[str, Path], architecture: str, attention: Any, precision: Any, examples: int
) -> None:
    """Draw batches whose rows use different adapters and texts, in any order.

    The adapters differ in delta kind, rank, layers, virtual tokens and number of classes. The texts differ in length.
    """
    base = load_base(str(folders[architecture]), precision=precision, attention=attention)
    kinds = configs(architecture)
    adapters = {
        (k, variant): make(base, config, 2 + 3 * variant, 13 * k + variant)
        for k, config in enumerate(kinds)
        for variant in range(1, 5)
    }
    bank = Bank(base, [base.attach(config) for config in kinds], 400_000)
    assert 12 <= bank.slots < len(adapters)  # fewer slots than adapters, so that adapters are evicted

    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(Rows)
    def check(rows: list[tuple[int, int, int]]) -> None:
        keys = [f"{k} {variant}" for k, variant, _ in rows]
        for (k, variant, _), key in zip(rows, keys, strict=True):
            bank.put(key, pack(adapters[k, variant], base), keep=keys)
        ids = base.inputs.encode([text(words, 3 * i) for i, (_, _, words) in enumerate(rows)])
        for (k, variant, _), row, found in zip(rows, ids, bank.answers(keys, ids), strict=True):
            alone = expected(base, adapters[k, variant], row)
            torch.testing.assert_close(torch.tensor(found), alone, rtol=0, atol=TOLERANCE[base.dtype])

    check()


def test_adapters_with_and_without_a_base_update_share_a_batch(tiny: Base) -> None:
    """Mix adapters in one batch. Only some of their initializations replace base-model parameters."""
    config = LoRAConfig(rank=2, alpha=4)
    update = {n: p + 0.2 for n, p in tiny.parameters(["encoder.layer.1.output.*"]).items()}
    bank = Bank(tiny, [tiny.attach(config)], 10**6, {"updated": update, "empty update": {}})
    adapters = {name: make(tiny, config, 3, seed, name) for seed, name in enumerate(("updated", "empty update", "no update"))}
    for name, adapter in adapters.items():
        bank.put(name, pack(adapter, tiny))
    keys = ["empty update", "updated", "no update", "updated", "empty update"]
    ids = tiny.inputs.encode([text(3 + i, i) for i in range(5)])
    for key, row, found in zip(keys, ids, bank.answers(keys, ids), strict=True):
        updated = update if key == "updated" else {}
        torch.testing.assert_close(torch.tensor(found), expected(tiny, adapters[key], row, updated), rtol=0, atol=1e-5)
    with_update, without = (expected(tiny, adapters["updated"], ids[0], updated) for updated in (update, {}))
    assert not torch.allclose(with_update, without, atol=1e-3)


def test_the_least_recently_used_adapter_is_evicted_unchanged_and_those_of_the_batch_are_kept(tiny: Base) -> None:
    config = LoRAConfig(rank=5, alpha=7)
    kinds = [tiny.attach(config), tiny.attach(LoRAConfig(rank=8)), tiny.attach(PrefixConfig(tokens=2))]
    bank = Bank(tiny, kinds, 1)
    assert bank.slots == 1
    slot = bank.nbytes
    bank = Bank(tiny, kinds, 2 * (slot + 8 * 33 * 4))
    assert bank.slots == 2
    packed = {name: pack(make(tiny, config, 2, seed), tiny) for seed, name in enumerate("abcde")}
    assert bank.put("a", packed["a"]) == bank.put("b", packed["b"]) == {}
    bank.answers(["a"], [TextRow([2, 5, 3])])
    (evicted,) = bank.put("c", packed["c"]).items()
    assert evicted[0] == "b" and _same(evicted[1], packed["b"])
    assert "a" in bank and "b" not in bank and "c" in bank
    assert list(bank.put("d", packed["d"], keep=["a"])) == ["c"]
    with pytest.raises(ValueError, match="more than the bank's 2 adapters"):
        bank.put("e", packed["e"], keep=["a", "d"])
    assert _same(bank.take("a"), packed["a"]) and len(bank) == 1
    assert bank.labels("d") == packed["d"].readout.labels


def test_large_heads_evict_other_adapters_but_none_of_the_same_batch(tiny: Base) -> None:
    config = HeadConfig()
    bank = Bank(tiny, [tiny.attach(config)], 4 * 8 * 33 * 4)
    assert bank.slots == 4
    for seed in range(4):
        assert bank.put(str(seed), pack(make(tiny, config, 4, seed), tiny)) == {}
    large = {name: pack(make(tiny, config, 30, 5), tiny) for name in ("x", "y")}
    assert list(bank.put("x", large["x"])) == ["0", "1", "2", "3"]
    assert bank.put("y", large["y"], keep=["x", "y"]) == {}  # over the budget, because the batch needs both
    assert list(bank.put("0", pack(make(tiny, config, 4, 0), tiny))) == ["x", "y"]
    assert bank.nbytes <= 4 * 8 * 33 * 4


def test_a_delta_that_does_not_fit_the_bank_is_refused(tiny: Base) -> None:
    """Refuse an adapter if the bank has no room for all of its delta's leaves. Never drop leaves."""
    narrow = Bank(tiny, [tiny.attach(LoRAConfig(rank=2))], 10**6)
    for config in (LoRAConfig(rank=4), PromptConfig(tokens=1), LoRAConfig(rank=2, targets=("key",))):
        with pytest.raises(ArtifactError, match="its delta does not fit the bank"):
            narrow.put("x", pack(make(tiny, config, 2, 0), tiny))
    assert len(narrow) == 0
    conflicting = [IA3Config(targets=("value",), feedforward=()), IA3Config(targets=("value",), feedforward=("value",))]
    with pytest.raises(UnsupportedDelta, match="cannot be in one batch"):
        Bank(tiny, [tiny.attach(config) for config in conflicting], 10**6)


def _same(left: Packed, right: Packed) -> bool:
    tensors = [{**each.leaves, **each.readout.leaves} for each in (left, right)]
    return (
        tensors[0].keys() == tensors[1].keys()
        and all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
        and (left.readout.labels, left.readout.initialization) == (right.readout.labels, right.readout.initialization)
    )
