"""Base-model parameters that the outer loop trains (`base.updated`): features, runs, files, errors."""

import copy
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from metatrain.artifacts.baselines import lora_from_zero
from metatrain.artifacts.initialization import load_initialization, save_initialization
from metatrain.deltas import LoRAConfig, PromptConfig
from metatrain.errors import ArtifactError, BaseModelError, NoMetaGradient, RecipeError
from metatrain.inner.encoded import Encoded
from metatrain.inner.problem import stack
from metatrain.models.base import Base
from metatrain.models.loading import load_base
from metatrain.tasks.episodes import EpisodeSampler, EpisodeShape
from metatrain.tasks.table import STARTER, read_table
from metatrain.training.evaluate import evaluate, evaluate_prototypes
from metatrain.training.recipe import Recipe, read_recipe
from metatrain.training.run import train
from tests.metatrain.training.plans import content
from tests.tiny import joined, tasks

ABOVE, BELOW, WORDS = "encoder.layer.1.output.dense.weight", "encoder.layer.0.*.bias", "embeddings.word_embeddings.weight"


def moved(base: Base, *patterns: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {n: p + 0.1 * torch.randn(p.shape, generator=generator).to(p) for n, p in base.parameters(patterns).items()}


@pytest.mark.parametrize("patterns", [(ABOVE,), (BELOW,), (ABOVE, WORDS)], ids=" ".join)
@pytest.mark.parametrize(
    "config", [LoRAConfig(rank=2, layers=(1,)), LoRAConfig(rank=2), PromptConfig(tokens=3)], ids=["upper lora", "lora", "prompt"]
)
def test_features_are_those_of_a_model_with_the_updated_parameters(tiny: Base, patterns: tuple[str, ...], config: Any) -> None:
    update = moved(tiny, *patterns)
    other = copy.deepcopy(tiny.model)
    other.load_state_dict({**other.state_dict(), **update})
    updated_base = joined(tiny, other, attention=tiny.attention)
    texts = [text for pairs in tasks(2) for text, _ in pairs]
    features = []
    for base, updated in ((tiny, update), (updated_base, {})):
        kind = base.attach(config)
        theta = kind.fold(stack(kind.initial(torch.Generator().manual_seed(0), b_std=0.2), 2))
        batch = base.backbone.below(base.inputs.collate(base.inputs.encode(texts), 2), kind)
        features.append(base.features(theta, batch, updated=updated))
    torch.testing.assert_close(features[0], features[1], rtol=1e-5, atol=1e-6)
    kind, batch = tiny.attach(config), tiny.inputs.collate(tiny.inputs.encode(texts), 2)
    theta = kind.fold(stack(kind.initial(torch.Generator().manual_seed(0), b_std=0.2), 2))
    assert not torch.allclose(tiny.features(theta, batch), features[0], atol=1e-3)  # the model itself is unchanged


MOVED: dict[str, dict[str, Any]] = {"base": {"updated": ["encoder.layer.1.output.*"]}, "outer": {"base_learning_rate": 1e-3}}


def plan(tiny_folder: Path, **changes: Any) -> Recipe:
    recipe = content(tiny_folder, **{name: changes[name] for name in changes if name == "algorithm"})
    for section in ("base", "outer"):
        recipe[section] = {**recipe[section], **MOVED[section], **changes.pop(section, {})}
    return Recipe.model_validate({**recipe, **changes})


@pytest.mark.parametrize(
    ("algorithm", "delta"),
    [
        ({"name": "fomaml"}, {"rank": 2}),
        ({"name": "metasgd"}, {"rank": 2, "layers": [1]}),
        ({"name": "anil"}, {"kind": "head"}),
        ({"name": "protonet"}, {"rank": 2}),
    ],
    ids=lambda section: str(section.get("name", section.get("kind", "lora"))),
)
def test_training_moves_them_at_their_own_rate_and_the_artifact_contains_them(
    tiny_folder: Path, tiny: Base, tmp_path: Path, algorithm: dict[str, Any], delta: dict[str, Any]
) -> None:
    before = tiny.parameters(["encoder.layer.1.output.*"])
    trained = train(plan(tiny_folder, algorithm=algorithm, delta=delta, outer={"average": 0.5}), Path(), tmp_path, max_steps=3)
    slower = plan(tiny_folder, algorithm=algorithm, delta=delta, outer={"base_learning_rate": 1e-6})
    assert trained.base_update.keys() == before.keys() and len(before) == 4
    slow = train(slower, Path(), tmp_path / "slow", max_steps=3)
    state = [load_file(folder / "checkpoint.safetensors") for folder in (tmp_path, tmp_path / "slow")]
    moves = [max(float((s[f"leaves/base.{n}"] - p).abs().max()) for n, p in before.items()) for s in state]
    assert 1e-4 < moves[0] <= 3.1e-3 and 0 < moves[1] < 4e-6
    assert slow.base_update.keys() == before.keys()
    update = {n: p + 0.05 for n, p in before.items()}
    init = replace(trained, base_update=update, name="moved")
    save_initialization(init, tmp_path / "moved", tiny.attach(init.delta))
    loaded = load_initialization(tmp_path / "moved", tiny)
    assert loaded.digest == init.digest != replace(init, base_update={}).digest
    assert all(torch.equal(loaded.base_update[n], p) for n, p in update.items())


def test_a_resumed_run_gives_the_same_bits(tiny_folder: Path, tmp_path: Path) -> None:
    recipe = plan(tiny_folder, algorithm={"name": "maml"})
    uninterrupted = train(recipe, Path(), tmp_path / "uninterrupted")
    train(recipe, Path(), tmp_path / "resumed", max_steps=3)
    assert train(recipe, Path(), tmp_path / "resumed").digest == uninterrupted.digest


def test_evaluation_uses_them(tiny: Base) -> None:
    sampler = EpisodeSampler([read_table(STARTER)], 0)
    episodes = [sampler.episode(i, EpisodeShape(4, 2, 3)) for i in range(6)]
    init = replace(lora_from_zero(tiny), base_update={n: torch.randn_like(p) for n, p in moved(tiny, "encoder.layer.*").items()})
    plain = lora_from_zero(tiny)
    encoded = Encoded(tiny)
    assert evaluate(tiny, init, episodes).accuracy != evaluate(tiny, plain, episodes).accuracy
    unadapted = evaluate(tiny, init, episodes, steps=0).accuracy
    assert unadapted == pytest.approx(evaluate_prototypes(tiny, init, episodes, encoded=encoded))
    assert unadapted != evaluate(tiny, plain, episodes, steps=0).accuracy


def test_with_a_bfloat16_model_they_start_from_the_float32_parameters(tiny_folder: Path, tiny: Base) -> None:
    rounded = load_base(str(tiny_folder), precision="bfloat16", device=torch.device("cpu"))
    for name, parameter in rounded.parameters(["encoder.layer.1.*"]).items():
        assert torch.equal(parameter, tiny.model.get_parameter(name)) and parameter.dtype == torch.float32


def test_parameters_that_cannot_be_moved_are_refused_by_name(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"base.updated: no parameter of .* matches 'decoder\.\*'; one is embeddings"):
        train(plan(tiny_folder, base={"updated": ["encoder.layer.1.*", "decoder.*"]}), Path(), tmp_path / "a")
    with pytest.raises(
        NoMetaGradient, match=r"the first of them base\.updated's pooler\.dense\.bias: the loss does not depend on it"
    ):
        train(plan(tiny_folder, base={"updated": ["pooler.*"]}), Path(), tmp_path / "b")
    file = tmp_path / "reptile.yaml"
    recipe = {**content(tiny_folder), "algorithm": {"name": "reptile"}}
    file.write_text(json.dumps({**recipe, "base": {**recipe["base"], "updated": ["encoder.*"]}}))
    with pytest.raises(RecipeError, match=r"base.updated: expected nothing with reptile"):
        read_recipe(file)


def test_loading_is_strict(tiny: Base, tmp_path: Path) -> None:
    init = replace(lora_from_zero(tiny), base_update=tiny.parameters([ABOVE]))
    folder = tmp_path / "init"

    def written(change: dict[str, torch.Tensor], listed: bool = True) -> Path:
        save_initialization(init, folder, tiny.attach(init.delta))
        path, description_path = folder / "base_update.safetensors", folder / "initialization.json"
        save_file({**load_file(path), **change}, path)
        description = json.loads(description_path.read_text())
        description["weights_sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        if not listed:
            del description["weights_sha256"][path.name]
        description_path.write_text(json.dumps(description))
        return folder

    for change, message in (
        ({"encoder.layer.9.bias": torch.zeros(2)}, r"leaf encoder\.layer\.9\.bias is not expected"),
        ({ABOVE: torch.zeros(2, 2)}, rf"leaf {ABOVE}: expected shape \[32, 48\], got \[2, 2\]"),
        ({ABOVE: torch.full((32, 48), float("nan"))}, f"leaf {ABOVE}: expected finite numbers"),
    ):
        with pytest.raises(ArtifactError, match=message):
            load_initialization(written(change), tiny)
    with pytest.raises(
        ArtifactError, match=r"base_update.safetensors: expected no such file, initialization.json does not name it"
    ):
        load_initialization(written({}, listed=False), tiny)
    description = json.loads((written({}) / "initialization.json").read_text())
    description["weights_sha256"]["base-update.safetensors"] = "0" * 64
    (folder / "initialization.json").write_text(json.dumps(description))
    with pytest.raises(ArtifactError, match=r"weights_sha256: expected no file 'base-update.safetensors'"):
        load_initialization(folder, tiny)
    save_initialization(replace(init, base_update={}), folder, tiny.attach(init.delta))  # overwrites all earlier files
    assert load_initialization(folder, tiny).base_update == {}
    (written({}) / "base_update.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"base_update.safetensors is missing"):
        load_initialization(folder, tiny)
