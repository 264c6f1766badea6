"""The full base digest has all that changes a feature, and is as before for what is read as before."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from metatrain.artifacts.baselines import lora_from_zero
from metatrain.artifacts.initialization import load_initialization, save_initialization
from metatrain.artifacts.stored_initialization import initialization_from_bytes, initialization_to_bytes
from metatrain.errors import ArtifactError
from metatrain.models.base import Base
from metatrain.models.inputs import TextSpec
from metatrain.models.loading import load_base
from tests.folders import copied, listed, pooled_by, write
from tests.tiny import save_tiny_model

CPU = torch.device("cpu")
TEXTS = ["Order PIZZA", "close my account please", "play some music now " * 30]


def loaded(folder: Path) -> Base:
    return load_base(str(folder), precision="float32", device=CPU)


def features(base: Base) -> torch.Tensor:
    return base.features(None, base.inputs.collate(base.inputs.encode(TEXTS)))


def digest_of_earlier_versions(base: Base, pooling: str) -> str:
    """Return the digest that versions before `modules.json` was read computed: of five fields."""
    content = {
        "weights_sha256": base.spec.weights_sha256,
        "tokenizer_sha256": base.spec.tokenizer_sha256,
        "pooling": pooling,
        "max_length": base.spec.max_length,
        "precision": "float32",
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def test_the_default_base_model_keeps_its_digest(minilm: Base) -> None:
    assert minilm.digest == "98b850f88e10c4f21c14104cfff1f22170bfd8cebfe67c9bf58f7133dc3554b5"
    assert minilm.spec.model_dump_json() == (
        '{"model":"sentence-transformers/all-MiniLM-L6-v2",'
        '"weights_sha256":"53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",'
        '"tokenizer_sha256":"192338f79e02d73b0c308feb73f0c2382fc9dc7869825d1603bced8f8e421753","pooling":"mean","max_length":256}'
    )


def no_files(folder: Path) -> None:
    pass


def old_cls(folder: Path) -> None:
    write(folder, "1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})


def normalised(folder: Path) -> None:
    pooled_by(folder)
    listed(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))


def lower_case_already(folder: Path) -> None:
    write(pooled_by(folder), "sentence_bert_config.json", {"do_lower_case": True, "max_seq_length": 64})
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    }
    write(folder, "tokenizer.json", {**tokenizer, "normalizer": normalizer})


def prompts_not_used(folder: Path) -> None:
    write(pooled_by(folder), "config_sentence_transformers.json", {"prompts": {"q": "to "}, "default_prompt_name": None})


def empty_prompt(folder: Path) -> None:
    settings = {"prompts": {"query": ""}, "default_prompt_name": "query", "similarity_fn_name": "cosine"}
    write(pooled_by(folder, include_prompt=False), "config_sentence_transformers.json", settings)


@pytest.mark.parametrize("change", [no_files, old_cls, normalised, lower_case_already, prompts_not_used, empty_prompt])
def test_base_models_that_are_read_as_before_keep_their_digests(
    change: Callable[[Path], None], tiny_folder: Path, tmp_path: Path
) -> None:
    change(copied(tiny_folder, tmp_path))
    base = loaded(tmp_path)
    assert base.digest == digest_of_earlier_versions(base, "cls" if change is old_cls else "mean")


def dense(folder: Path, *, seed: int = 0, activation: str = "Tanh", path: str = "2_Dense") -> None:
    pooled_by(folder)
    config = {
        "in_features": 32,
        "out_features": 16,
        "bias": False,
        "activation_function": f"torch.nn.modules.activation.{activation}",
    }
    write(folder, f"{path}/config.json", config)
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(seed))
    save_file({"linear.weight": weight}, folder / path / "model.safetensors")
    listed(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", path))


def prompt(folder: Path, text: str, **pooling: Any) -> None:
    write(pooled_by(folder, **pooling), "config_sentence_transformers.json", {"prompts": {"q": text}, "default_prompt_name": "q"})


CHANGES: dict[str, Callable[[Path], Any]] = {
    "mean": lambda f: pooled_by(f),
    "max": lambda f: pooled_by(f, pooling="max"),
    "last token": lambda f: pooled_by(f, pooling="lasttoken"),
    "weighted mean": lambda f: pooled_by(f, pooling="weightedmean"),
    "mean and max": lambda f: pooled_by(f, pooling=["mean", "max"]),
    "max and mean": lambda f: pooled_by(f, pooling=["max", "mean"]),
    "lower-casing": lambda f: write(pooled_by(f), "sentence_bert_config.json", {"do_lower_case": True}),
    "16 tokens": lambda f: write(pooled_by(f), "sentence_bert_config.json", {"max_seq_length": 16}),
    "prompt": lambda f: prompt(f, "please: "),
    "another prompt": lambda f: prompt(f, "please to "),
    "prompt not pooled": lambda f: prompt(f, "please: ", include_prompt=False),
    "Dense": dense,
    "other weights of Dense": lambda f: dense(f, seed=1),
    "Dense with ReLU": lambda f: dense(f, activation="ReLU"),
    "14 dimensions": lambda f: write(pooled_by(f), "config_sentence_transformers.json", {"truncate_dim": 14}),
}


def test_every_setting_that_changes_a_feature_changes_the_digest(tiny_folder: Path, tmp_path: Path) -> None:
    found: dict[str, Base] = {}
    for name, change in CHANGES.items():
        change(copied(tiny_folder, tmp_path / name))
        found[name] = loaded(tmp_path / name)
    assert len({base.digest for base in found.values()}) == len(CHANGES)
    vectors = [tuple(features(base).flatten().tolist()) for name, base in found.items() if name != "mean and max"]
    assert len(set(vectors)) == len(CHANGES) - 1


def test_where_a_module_lies_changes_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    for path in ("2_Dense", "deeper/dense"):
        dense(copied(tiny_folder, tmp_path / path[0]), path=path)
    one, other = (loaded(tmp_path / name) for name in "2d")
    assert one.digest == other.digest and torch.equal(features(one), features(other))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_the_settings_of_the_model_are_part_of_new_digests(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    digests = []
    some: list[dict[str, Any]] = [{}, {"transformers_version": "0"}, {"layer_norm_eps": 0.5, "add_prefix_space": True}]
    for number, more in enumerate(some):
        folder = pooled_by(copied(tiny_folder, tmp_path / str(number)), pooling="max")
        write(folder, name, {**json.loads((folder / name).read_text()), **more})
        digests.append(loaded(folder).digest)
    assert digests[0] == digests[1] != digests[2]


def test_an_initialization_is_loaded_only_on_a_base_model_with_its_own_settings(tiny_folder: Path, tmp_path: Path) -> None:
    """A setting that one of the two base models does not have at all counts too."""
    plain = loaded(tiny_folder)
    prompt(copied(tiny_folder, tmp_path / "prompted"), "please: ")
    prompted = loaded(tmp_path / "prompted")
    for base, other in ((plain, prompted), (prompted, plain)):
        init = lora_from_zero(base)
        folder = tmp_path / ("of-prompted" if base is prompted else "of-plain")
        save_initialization(init, folder, base.attach(init.delta))
        assert load_initialization(folder, base).digest == init.digest
        assert initialization_from_bytes(initialization_to_bytes(init), base, init.digest).base == base.spec
        with pytest.raises(ArtifactError, match=r"base\.prompt is"):
            load_initialization(folder, other)
        with pytest.raises(ArtifactError, match="made for base model"):
            initialization_from_bytes(initialization_to_bytes(init), other, init.digest)


def test_a_spec_has_only_the_fields_that_are_not_at_their_default(tmp_path: Path) -> None:
    base = loaded(save_tiny_model(tmp_path))
    assert set(base.spec.model_dump()) == {"model", "weights_sha256", "tokenizer_sha256", "pooling", "max_length"}
    changed = base.spec.model_copy(update={"pooling": ("max", "mean"), "lower_case": True})
    assert TextSpec.model_validate_json(changed.model_dump_json()) == changed
    assert changed.identity.keys() - base.spec.identity.keys() == {"lower_case"}
