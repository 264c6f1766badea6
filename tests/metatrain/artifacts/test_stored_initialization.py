"""Initializations as bytes: the round trip, and damaged or foreign bytes."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from metatrain.artifacts.baselines import frozen_prototypes, lora_from_zero
from metatrain.artifacts.catalog import SHIPPED, SHIPPED_BEFORE
from metatrain.artifacts.initialization import Initialization, load_initialization
from metatrain.artifacts.stored_initialization import described_in, initialization_from_bytes, initialization_to_bytes
from metatrain.errors import ArtifactError
from metatrain.models.base import Base


def with_everything(tiny: Base) -> Initialization:
    """Return an initialization with rates for every parameter, several steps, and a base update."""
    init = lora_from_zero(tiny)
    rates = {name: torch.full((2, *leaf.shape), 0.01) for name, leaf in init.theta.items()}
    rates |= {name: torch.tensor([0.02, 0.03]) for name in ("head.weight", "head.bias")}
    update = {name: p + 0.2 for name, p in tiny.parameters(["encoder.layer.1.output.*"]).items()}
    return replace(init, name="mine", rates=rates, base_update=update, provenance={"by": "us"})


@pytest.mark.parametrize("make", [lora_from_zero, frozen_prototypes, with_everything])
def test_an_initialization_survives_the_round_trip(tiny: Base, make: object) -> None:
    init: Initialization = make(tiny)  # type: ignore[operator]
    content = initialization_to_bytes(init)
    again = initialization_from_bytes(content, tiny, init.digest)
    assert (again.digest, again.name, again.algorithm, again.provenance) == (
        init.digest,
        init.name,
        init.algorithm,
        init.provenance,
    )
    assert again.inner == init.inner and again.readout == init.readout and again.base == init.base
    assert described_in(content, "x").name == init.name
    for kept, loaded in ((init.theta, again.theta), (init.rates, again.rates), (init.base_update, again.base_update)):
        assert kept.keys() == loaded.keys() and all(torch.equal(kept[name], loaded[name]) for name in kept)


def test_damaged_and_foreign_bytes_are_refused(tiny: Base) -> None:
    init = lora_from_zero(tiny)
    content = initialization_to_bytes(init)
    leaves = load(content)
    metadata = {"quickstudy-initialization": described_in(content, "x").model_dump_json()}
    theta = next(name for name in leaves if name.startswith("theta."))
    rate = next(name for name in leaves if name.startswith("rates."))
    other_base = init.base.model_copy(update={"weights_sha256": "0" * 64})
    for wrong, message in (
        (content[:-4], "expected .* bytes"),
        (b"", "not a safetensors file"),
        (save(leaves, {"other": "x"}), "header"),
        (save({**leaves, theta: leaves[theta] + 1}, metadata), "the stored bytes are those of another initialization"),
        (save({**leaves, theta: leaves[theta][:1]}, metadata), "expected shape"),
        (save({**leaves, theta: leaves[theta] * float("nan")}, metadata), "expected finite numbers"),
        (save({**leaves, rate: -leaves[rate]}, metadata), "expected rates of at least 0"),
        (save({name: leaf for name, leaf in leaves.items() if name != theta}, metadata), "is missing"),
        (save({**leaves, "base.nothing": torch.zeros(1)}, metadata), "is not expected"),
        (initialization_to_bytes(replace(init, base=other_base)), "made for base model"),
    ):
        with pytest.raises(ArtifactError, match=message):
            initialization_from_bytes(wrong, tiny, init.digest)


def test_every_shipped_initialization_is_listed_and_changes_no_parameter_of_the_base_model(minilm: Base) -> None:
    """Check that `SHIPPED_BEFORE` has the digest of every shipped initialization.

    A digest stays in it when its initialization is no longer shipped, because adapters made from it are still used. None of the
    shipped initializations may update the base model.
    """
    for path in SHIPPED.glob("*/initialization.json"):
        init = load_initialization(path.parent, minilm)
        assert init.digest in SHIPPED_BEFORE and not init.base_update
