"""The predictor's thread must outlive whatever it is given."""

import pytest
import torch

from metatrain.artifact import Adapter, AdapterMetadata, adapter_to_bytes
from metatrain.base.text import TextBase
from metatrain.baselines import lora_from_zero
from metatrain.deltas import DeltaConfig, LoRAConfig
from metatrain.errors import ArtifactError
from service.predictor import InProcessPredictor, NotResident


def adapter_bytes(base: TextBase, config: DeltaConfig, digest: str) -> bytes:
    metadata = AdapterMetadata(
        initialization_digest=digest,
        base_weights_sha256=base.spec.weights_sha256,
        delta=config,
        scale=16.0,
        labels=("a", "b"),
    )
    theta = base.attach(config).initial(torch.Generator().manual_seed(0))
    return adapter_to_bytes(Adapter(metadata, theta, torch.eye(2, base.hidden_size), torch.zeros(2)))


def test_what_does_not_fit_fails_alone_and_the_next_call_is_answered(tiny: TextBase) -> None:
    init = lora_from_zero(tiny)
    predictor = InProcessPredictor(tiny, {init.name: init}, slots=2, rows=8)
    fine = adapter_bytes(tiny, init.delta, init.digest)
    with pytest.raises(ArtifactError, match="is not one of this service"):
        predictor.submit("x", adapter_bytes(tiny, init.delta, "0" * 64), ["order"])
    # A delta that the bank has no room for, under a digest that is known: refused by the bank, in the thread.
    large = adapter_bytes(tiny, LoRAConfig(rank=16), init.digest)
    with pytest.raises(ArtifactError, match="no room for its delta"):
        predictor.submit("y", large, ["order"]).result(10)
    with pytest.raises(NotResident):
        predictor.submit("z", None, ["order"]).result(10)
    answer = predictor.submit("f", fine, ["order pizza"] * 20).result(10)
    assert answer.labels == ("a", "b") and len(answer.probabilities) == 20
    assert predictor.alive() and predictor.resident("f")
    predictor.forget("f")
    with pytest.raises(NotResident):
        predictor.submit("f", None, ["order"]).result(10)
    predictor.close()
    assert not predictor.alive()
