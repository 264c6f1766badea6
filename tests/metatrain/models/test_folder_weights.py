"""Every parameter of a base model comes from its file, or its folder is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from metatrain.errors import BaseModelError
from metatrain.models.loading import describe_base, load_base
from tests.folders import CPU, Change, change_weights, copied, listed, pooled_by, refusals, write
from tests.tiny import save_tiny_model

TEXTS = ["order pizza", "close my account please", "play some music now"]
QUERY = "encoder.layer.0.attention.self.query.weight"


def features(folder: Path) -> torch.Tensor:
    base = load_base(str(folder), precision="float32", device=CPU)
    return base.features(None, base.inputs.collate(base.inputs.encode(TEXTS)))


def renamed(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({"0.auto_model." + name: tensor for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def more_layers(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    extra = {n.replace("layer.1.", "layer.2."): t.clone() for n, t in weights.items() if "layer.1." in n}
    change_weights(folder, dict(extra))


def fewer_layers_in_the_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    write(folder, "config.json", {**config, "num_hidden_layers": 1})


def whole_numbers(name: str, dtype: torch.dtype = torch.int64) -> Change:
    def change(folder: Path) -> None:
        change_weights(folder, {name: load_file(folder / "model.safetensors")[name].to(dtype)})

    return change


PARAMETERS: dict[str, tuple[Change, str]] = {
    "names of a whole sentence-transformers model": (renamed, "the file lacks the parameter embeddings.LayerNorm.bias and"),
    "one weight is missing": (lambda f: change_weights(f, {QUERY: None}), f"the file lacks the parameter {QUERY}"),
    "one bias is missing": (
        lambda f: change_weights(f, {"encoder.layer.1.output.dense.bias": None}),
        "the file lacks the parameter encoder.layer.1.output.dense.bias",
    ),
    "embeddings are missing": (
        lambda f: change_weights(f, {"embeddings.word_embeddings.weight": None}),
        "the file lacks the parameter embeddings.word_embeddings.weight",
    ),
    "a weight is wider": (lambda f: change_weights(f, {QUERY: torch.zeros(32, 40)}), f"{QUERY} has shape [32, 40] in the file"),
    "a vocabulary is smaller": (
        lambda f: change_weights(f, {"embeddings.word_embeddings.weight": torch.zeros(9, 32)}),
        "embeddings.word_embeddings.weight has shape [9, 32] in the file",
    ),
    "a bias is a scalar": (
        lambda f: change_weights(f, {"encoder.layer.0.output.dense.bias": torch.zeros(())}),
        "encoder.layer.0.output.dense.bias has shape [] in the file, expected [32]",
    ),
    "a weight of whole numbers": (whole_numbers(QUERY), f"parameter {QUERY} has dtype I64 in the file, expected floating-point"),
    "embeddings of bytes": (
        whole_numbers("embeddings.word_embeddings.weight", torch.uint8),
        "parameter embeddings.word_embeddings.weight has dtype U8 in the file",
    ),
    "a bias of truth values": (
        whole_numbers("encoder.layer.1.output.dense.bias", torch.bool),
        "parameter encoder.layer.1.output.dense.bias has dtype BOOL in the file",
    ),
    "an unknown tensor": (lambda f: change_weights(f, {"extra.weight": torch.zeros(2)}), "unknown parameter extra.weight"),
    "an adapter's tensors": (
        lambda f: change_weights(f, {QUERY.replace("weight", "lora_A.weight"): torch.zeros(2, 32)}),
        "unknown parameter encoder.layer.0.attention.self.query.lora_A.weight",
    ),
    "a layer more than the configuration has": (more_layers, "unknown parameter encoder.layer.2."),
    "a layer less in the configuration": (fewer_layers_in_the_config, "unknown parameter encoder.layer.1."),
}


@pytest.mark.parametrize("case", PARAMETERS)
def test_a_parameter_that_does_not_come_from_the_file_is_named(tiny_folder: Path, tmp_path: Path, case: str) -> None:
    change, problem = PARAMETERS[case]
    change(copied(tiny_folder, tmp_path))
    assert all(problem in message for message in refusals(tmp_path))


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "llama", "qwen3"])
def test_in_a_file_saved_with_a_head_the_head_is_left_aside_and_nothing_else(tmp_path: Path, architecture: str) -> None:
    bare, headed = save_tiny_model(tmp_path / "bare", architecture=architecture), tmp_path / "headed"
    prefix = load_base(str(bare), precision="float32", device=CPU).model.base_model_prefix
    assert isinstance(prefix, str)
    change_weights(copied(bare, headed), {"lm_head.weight": torch.zeros(3), "cls.bias": torch.zeros(1)}, prefix=f"{prefix}.")
    torch.testing.assert_close(features(headed), features(bare), atol=0, rtol=0)
    described = describe_base(str(headed), precision="float32", device=CPU)
    assert described.digest == load_base(str(headed), precision="float32", device=CPU).digest

    change_weights(headed, {f"{prefix}.more.weight": torch.zeros(3)})
    assert all(f"unknown parameter {prefix}.more.weight" in message for message in refusals(headed))


def test_poolers_and_buffers_are_left_aside(tiny_folder: Path, tmp_path: Path) -> None:
    plain = features(tiny_folder)
    some: list[dict[str, torch.Tensor | None]] = [
        {"pooler.dense.weight": None, "pooler.dense.bias": None},
        {"pooler.dense.weight": torch.zeros(3, 3)},
        {"pooler.more": torch.zeros(1), "embeddings.position_ids": torch.arange(72).unsqueeze(0)},
    ]
    for number, changes in enumerate(some):
        folder = change_weights(copied(tiny_folder, tmp_path / str(number)), changes)
        torch.testing.assert_close(features(folder), plain, atol=0, rtol=0)


def test_weights_that_give_no_features_are_refused_with_the_folder(tiny_folder: Path, tmp_path: Path) -> None:
    weights = load_file(tiny_folder / "model.safetensors")
    change_weights(copied(tiny_folder, tmp_path), {name: torch.zeros_like(tensor) for name, tensor in weights.items()})
    with pytest.raises(
        BaseModelError, match=r"^base\.model: .* its features are not finite or all zero, so its weights are damaged"
    ):
        load_base(str(tmp_path), precision="float32", device=CPU)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_one_number_that_is_not_finite_is_refused_with_its_parameter(
    tiny_folder: Path, tmp_path: Path, value: float, prefix: str
) -> None:
    """Damage the row of one word, then the pooler, which has no part in features."""
    table = load_file(tiny_folder / "model.safetensors")["embeddings.word_embeddings.weight"]
    table[7, 3] = value
    change_weights(copied(tiny_folder, tmp_path), {"embeddings.word_embeddings.weight": None}, prefix=prefix)
    change_weights(tmp_path, {f"{prefix}embeddings.word_embeddings.weight": table})
    with pytest.raises(BaseModelError, match=r"parameter embeddings.word_embeddings.weight has NaN or infinite numbers in float32"):
        load_base(str(tmp_path), precision="float32", device=CPU)

    changes: dict[str, torch.Tensor | None] = {
        "pooler.dense.weight": torch.full((32, 32), value),
        "pooler.dense.bias": torch.zeros(32),
    }
    features(change_weights(copied(tiny_folder, tmp_path / "pooler"), changes))


def test_a_module_with_a_number_that_is_not_finite_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    write(pooled_by(copied(tiny_folder, tmp_path)), "2_Dense/config.json", {"in_features": 32, "out_features": 4})
    weight = torch.zeros(4, 32)
    weight[1, 1] = float("nan")
    save_file({"linear.weight": weight, "linear.bias": torch.zeros(4)}, tmp_path / "2_Dense" / "model.safetensors")
    listed(tmp_path, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))
    problem = "2_Dense/model.safetensors: parameter linear.weight has NaN or infinite numbers"
    assert all(problem in message for message in refusals(tmp_path))


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_a_token_without_an_embedding_is_refused_with_its_id(tmp_path: Path, architecture: str) -> None:
    folder = save_tiny_model(tmp_path / "tiny", architecture=architecture)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    load_base(str(folder), precision="float32", device=CPU)
    vocabulary = tokenizer["model"]["vocab"]
    changed = {**tokenizer, "model": {**tokenizer["model"], "vocab": {**vocabulary, "beyond": rows}}}
    write(copied(folder, tmp_path / "beyond"), "tokenizer.json", changed)
    problem = f"tokenizer.json: token 'beyond' has the id {rows}, and the model has embeddings for {rows} ids"
    assert all(problem in message for message in refusals(tmp_path / "beyond"))
    changed["model"]["vocab"] = {**vocabulary, "beyond": rows - 1}  # a larger table is fine
    load_base(str(write(tmp_path / "beyond", "tokenizer.json", changed)), precision="float32", device=CPU)
