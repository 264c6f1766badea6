import pytest
import torch

from metatrain.artifact import Adapter, AdapterMetadata
from metatrain.bank import Bank
from metatrain.base.text import TextBase
from metatrain.deltas import LoRAConfig
from metatrain.errors import ArtifactError
from tests.tiny import WORDS

KINDS = (
    LoRAConfig(rank=2, alpha=4, targets=("query", "value")),
    LoRAConfig(rank=5, alpha=5, targets=("query", "intermediate.dense")),
)


def make(base: TextBase, seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    config, classes = KINDS[seed % 2], 2 + seed % 4
    metadata = AdapterMetadata(
        initialization_digest="i",
        base_weights_sha256=base.spec.weights_sha256,
        delta=config,
        scale=5.0 + seed,
        labels=tuple(f"label {c}" for c in range(classes)),
    )
    theta = base.attach(config).initial(generator, b_std=0.4)
    weight = torch.nn.functional.normalize(torch.randn(classes, base.hidden_size, generator=generator), dim=-1)
    return Adapter(metadata, theta, weight, 0.1 * torch.randn(classes, generator=generator))


def expected(base: TextBase, adapter: Adapter, ids: list[int]) -> torch.Tensor:
    """One row with one adapter, without a bank."""
    lora = base.attach(adapter.metadata.delta)
    features = base.features(lora.fold({n: t.unsqueeze(0) for n, t in adapter.delta.items()}), base.collate([ids]))
    return torch.softmax(adapter.metadata.scale * (features @ adapter.weight.T + adapter.bias), -1)[0]


def test_a_mixed_batch_equals_each_row_alone(tiny: TextBase) -> None:
    """Different kinds, ranks, numbers of classes, scales and lengths; slots reused after eviction."""
    bank = Bank(tiny, [tiny.attach(kind) for kind in KINDS], slots=4)
    adapters = {str(seed): make(tiny, seed) for seed in range(9)}
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        keys = [str(int(i)) for i in torch.randperm(9, generator=generator)[:4]]
        for key in keys:
            bank.put(key, adapters[key], keep=keys)
        rows = [keys[int(i)] for i in torch.randint(4, (11,), generator=generator)]
        ids = [tiny.encode([" ".join(WORDS.split()[: 1 + (7 * i) % 20])])[0][0] for i in range(11)]
        for key, row, found in zip(rows, ids, bank.probabilities(rows, ids), strict=True):
            torch.testing.assert_close(torch.tensor(found), expected(tiny, adapters[key], row), rtol=0, atol=1e-5)


def test_the_least_recently_used_goes_and_what_a_batch_needs_stays(tiny: TextBase) -> None:
    bank = Bank(tiny, [tiny.attach(kind) for kind in KINDS], slots=2)
    bank.put("a", make(tiny, 0))
    bank.put("b", make(tiny, 1))
    bank.probabilities(["a"], [[2, 5, 3]])
    bank.put("c", make(tiny, 2))
    assert "a" in bank and "b" not in bank and "c" in bank
    bank.put("d", make(tiny, 3), keep=["a"])
    assert "a" in bank and "c" not in bank
    with pytest.raises(ValueError, match="more than the bank's 2 adapters"):
        bank.put("e", make(tiny, 4), keep=["a", "d"])
    bank.drop("a")
    bank.drop("never there")
    narrow = Bank(tiny, [tiny.attach(KINDS[0])], slots=2)
    with pytest.raises(ArtifactError, match="no room for its delta"):  # never answered without the leaves that do not fit
        narrow.put("x", make(tiny, 1))
    assert len(narrow) == 0
    assert len(bank) == 1
    assert bank.labels("d") == make(tiny, 3).metadata.labels
