"""A folder that states what cannot be reproduced is refused with the name of the setting or module."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from metatrain.models.loading import describe_base, load_base
from metatrain.models.modules import DenseSpec
from tests.folders import CPU, OLD, Change, copied, listed, pointer, pooled_by, refusals, text, write


def settings(name: str, content: Any) -> Change:
    return lambda folder: write(folder, name, content)


def truncation(**change: Any) -> Change:
    """Add a truncation to tokenizer.json, and take the setting of the other file away."""

    def to(folder: Path) -> None:
        for name, changed in (("tokenizer.json", {"truncation": {**TRUNCATION, **change}}), ("tokenizer_config.json", {})):
            content = json.loads((folder / name).read_text())
            content.pop("truncation_side", None)
            write(folder, name, {**content, **changed})

    return to


def truncation_side(side: str) -> Change:
    return lambda folder: write(
        folder, "tokenizer_config.json", {**json.loads((folder / "tokenizer_config.json").read_text()), "truncation_side": side}
    )


TRUNCATION = {"max_length": 16, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}


def with_dense(**config: Any) -> Change:
    def change(folder: Path) -> None:
        dense = {"in_features": 32, "out_features": 4, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
        write(folder, "2_Dense/config.json", {name: value for name, value in (dense | config).items() if value != "absent"})
        tensors = {"linear.weight": torch.zeros(4, 32), "linear.bias": torch.zeros(4)}
        save_file(tensors, folder / "2_Dense" / "model.safetensors")
        listed(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"))

    return change


def modules(*names: tuple[str, str], **options: Any) -> Change:
    return lambda folder: listed(folder, *names, **options)


START = (("Transformer", ""), ("Pooling", "1_Pooling"))
SETTINGS: dict[str, tuple[Change, str]] = {
    "length 0": (
        settings("sentence_bert_config.json", {"max_seq_length": 0}),
        "max_seq_length: expected a whole number of at least 8",
    ),
    "length -1": (settings("sentence_bert_config.json", {"max_seq_length": -1}), "got -1"),
    "length 7": (settings("sentence_bert_config.json", {"max_seq_length": 7}), "got 7"),
    "length in words": (settings("sentence_bert_config.json", {"max_seq_length": "128"}), "got '128'"),
    "length 64.5": (settings("sentence_bert_config.json", {"max_seq_length": 64.5}), "got 64.5"),
    "length true": (settings("sentence_bert_config.json", {"max_seq_length": True}), "got True"),
    "length of a list": (settings("sentence_bert_config.json", {"max_seq_length": [9] * 999}), "max_seq_length"),
    "lower-casing in words": (
        settings("sentence_bert_config.json", {"do_lower_case": "yes"}),
        "do_lower_case: expected true or false",
    ),
    "another task": (settings("sentence_bert_config.json", {"transformer_task": "fill-mask"}), "transformer_task: expected"),
    "chat template": (
        settings(
            "sentence_bert_config.json",
            {
                "modality_config": {
                    kind: {"method": "forward", "method_output_name": "last_hidden_state"} for kind in ("text", "message")
                }
            },
        ),
        "modality_config: expected",
    ),
    "options": (settings("sentence_bert_config.json", {"config_args": {"is_decoder": True}}), "the option 'is_decoder'"),
    "unknown setting": (settings("sentence_bert_config.json", {"layers_to_average": 4}), "unknown setting 'layers_to_average'"),
    "settings cut": (text("sentence_bert_config.json", '{"max_seq'), "sentence_bert_config.json is not valid JSON"),
    "settings of another kind": (text("sentence_bert_config.json", "3"), "expected a JSON object, got a number"),
    "pooling cut": (text("1_Pooling/config.json", "{"), "1_Pooling/config.json is not valid JSON"),
    "pooling: pointer": (pointer("1_Pooling/config.json"), "1_Pooling/config.json is a Git LFS pointer"),
    "pooling: missing": (lambda f: (f / "1_Pooling/config.json").unlink(), "1_Pooling/config.json: No such file"),
    "pooling: unknown": (
        settings("1_Pooling/config.json", {"pooling_mode": "attention"}),
        "pooling_mode: expected one or several of",
    ),
    "pooling: none": (settings("1_Pooling/config.json", {"pooling_mode": []}), "pooling_mode: expected one or several of"),
    "pooling: a number": (
        settings("1_Pooling/config.json", {"pooling_mode": {"a": 1}}),
        "pooling_mode: expected one or several of",
    ),
    "pooling: a flag in words": (settings("1_Pooling/config.json", {"pooling_mode_max_tokens": "no"}), "expected true or false"),
    "pooling: unknown setting": (settings("1_Pooling/config.json", {"top_k": 3}), "unknown setting 'top_k'"),
    "pooling: empty": (settings("1_Pooling/config.json", {}), "1_Pooling/config.json: expected pooling_mode, or one of"),
    "modules: one name twice": (
        settings("modules.json", [{"name": "0", "path": p, "type": f"{OLD}{kind}"} for kind, p in (*START, ("Normalize", "n"))]),
        "modules.json: expected different names, got '0' more than once",
    ),
    "modules: a sparse encoder's": (
        modules(*START, prefix="sentence_transformers.sparse_encoder.models."),
        "module sentence_transformers.sparse_encoder.models.Transformer () is not supported",
    ),
    "modules: only the last part is known": (
        modules(*START, prefix="sentence_transformers.models.evil."),
        "module sentence_transformers.models.evil.Transformer () is not supported",
    ),
    "Dense: an activation with only the last part known": (
        with_dense(activation_function="torch.nn.evil.activation.Tanh"),
        "activation_function torch.nn.evil.activation.Tanh is not supported",
    ),
    "modules cut": (text("modules.json", '[{"idx":'), "modules.json is not valid JSON"),
    "modules: an object": (text("modules.json", "{}"), "expected a list of modules"),
    "modules: none": (text("modules.json", "[]"), "expected a list of modules"),
    "modules: no type": (text("modules.json", '[{"path": ""}]'), "module 1 has no type or no path"),
    "modules: words": (text("modules.json", '["Transformer"]'), "module 1 has no type or no path"),
    "modules: outside": (modules(("Transformer", "../other")), "leaves the folder"),
    "modules: absolute": (modules(("Transformer", "/etc")), "leaves the folder"),
    "modules: a null character": (
        modules(("Transformer", "a\0b")),
        "modules.json: module 1: path 'a\\x00b': embedded null byte",
    ),
    "modules: a null character in a pooling": (modules(("Transformer", ""), ("Pooling", "1\0")), "modules.json: module 2: path"),
    "modules: too long": (modules(("Transformer", "a" * 3000)), "aaa'…: File name too long"),
    "modules: too long for a path": (modules(("Transformer", "a/" * 3000)), "a/'…: File name too long"),
    "modules: too long for a Normalize": (modules(*START, ("Normalize", "n" * 300)), "module 3: path 'nnn"),
    "modules: outside and long": (modules(("Transformer", "../" * 300)), "leaves the folder"),
    "left truncation in the settings": (
        truncation_side("left"),
        "tokenizer_config.json: truncation_side: expected 'right', got 'left'",
    ),
    "left truncation in the tokenizer": (
        truncation(direction="Left"),
        "tokenizer.json: truncation.direction: expected 'right', got 'left'",
    ),
    "CNN": (
        modules(("Transformer", ""), ("CNN", "1_CNN"), ("Pooling", "1_Pooling")),
        "module sentence_transformers.models.CNN (1_CNN)",
    ),
    "LSTM": (modules(*START, ("LSTM", "2_LSTM")), "module sentence_transformers.models.LSTM (2_LSTM) is not supported"),
    "WeightedLayerPooling": (modules(*START, ("WeightedLayerPooling", "2_W")), "WeightedLayerPooling (2_W) is not supported"),
    "StaticEmbedding": (modules(("StaticEmbedding", "")), "models.StaticEmbedding () is not supported"),
    "Router": (modules(("Router", "")), "models.Router () is not supported"),
    "code of the model's own": (modules(("Transformer", ""), ("Pooling", "x"), prefix="my_code."), "module my_code.Transformer"),
    "no pooling": (modules(("Transformer", "")), "lists no Pooling module"),
    "two poolings": (modules(*START, ("Pooling", "1_Pooling")), "a second Pooling (1_Pooling)"),
    "two transformers": (modules(*START, ("Transformer", "")), "expected one Transformer, as the first module"),
    "pooling first": (modules(("Pooling", "1_Pooling"), ("Transformer", "")), "expected one Transformer, as the first module"),
    "normalised tokens": (
        modules(("Transformer", ""), ("Normalize", "n"), ("Pooling", "1_Pooling")),
        "Normalize (n) before the pooling",
    ),
    "another model": (settings("config_sentence_transformers.json", {"model_type": "SparseEncoder"}), "model_type 'SparseEncoder'"),
    "prompt: unknown": (
        settings("config_sentence_transformers.json", {"default_prompt_name": "q"}),
        "'q' is not one of the prompts",
    ),
    "prompt: a number": (
        settings("config_sentence_transformers.json", {"prompts": {"q": 3}, "default_prompt_name": "q"}),
        "prompts: expected a text for 'q'",
    ),
    "prompt: a list": (
        settings("config_sentence_transformers.json", {"prompts": ["q"], "default_prompt_name": "q"}),
        "expected prompts by name",
    ),
    "prompt: longer than a row": (
        settings("config_sentence_transformers.json", {"prompts": {"q": "to " * 70}, "default_prompt_name": "q"}),
        "the prompt takes",
    ),
    "dimensions: 0": (settings("config_sentence_transformers.json", {"truncate_dim": 0}), "truncate_dim: expected a whole number"),
    "Dense: another width": (with_dense(in_features=64), "parameter linear.weight has shape [4, 32], expected [4, 64]"),
    "Dense: no bias": (with_dense(bias=False), "2_Dense/model.safetensors has an unknown parameter linear.bias"),
    "Dense: a residual": (with_dense(use_residual=True), "2_Dense/model.safetensors lacks the parameter residual.weight"),
    "Dense: an unknown activation": (with_dense(activation_function="my_code.Swish"), "activation_function my_code.Swish"),
    "Dense: whole numbers": (
        lambda f: (
            with_dense()(f),
            save_file(
                {"linear.weight": torch.zeros(4, 32, dtype=torch.int32), "linear.bias": torch.zeros(4)},
                f / "2_Dense" / "model.safetensors",
            ),
        ),
        "2_Dense/model.safetensors: parameter linear.weight has dtype I32, expected floating-point numbers",
    ),
    "Dense: on tokens": (with_dense(module_input_name="token_embeddings"), "module_input_name: expected"),
    "Dense: no width": (with_dense(out_features="absent"), "lacks the setting 'out_features'"),
    "Dense: a width in words": (with_dense(out_features="4"), "out_features: expected a whole number of at least 1, got '4'"),
    "Dense: pickled": (
        lambda f: (with_dense()(f), (f / "2_Dense/model.safetensors").rename(f / "2_Dense/pytorch_model.bin")),
        "2_Dense has no model.safetensors",
    ),
    "Dense: pointer": (lambda f: (with_dense()(f), pointer("2_Dense/model.safetensors")(f)), "is a Git LFS pointer"),
    "Dense after a concatenation": (
        lambda f: (with_dense()(f), write(f, "1_Pooling/config.json", {"pooling_mode": ["mean", "max"]})),
        "modules.json: Dense takes 32 features, got 64",
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_what_cannot_be_reproduced_is_refused_with_its_name(tiny_folder: Path, tmp_path: Path, case: str) -> None:
    change, problem = SETTINGS[case]
    change(pooled_by(copied(tiny_folder, tmp_path)))
    assert all(problem in message for message in refusals(tmp_path))


@pytest.mark.parametrize(
    "types",
    [
        ("models.Transformer", "models.Pooling", "models.Dense"),
        ("models.Transformer.Transformer", "models.Pooling.Pooling", "models.Dense.Dense"),
        ("base.modules.transformer.Transformer", "sentence_transformer.modules.pooling.Pooling", "base.modules.dense.Dense"),
        ("base.modules.Transformer", "sentence_transformer.modules.Pooling", "sentence_transformer.modules.Dense"),
    ],
)
@pytest.mark.parametrize("activation", ["torch.nn.modules.activation.GELU", "torch.nn.GELU", "torch.nn.modules.linear.Identity"])
def test_modules_have_the_names_of_any_version(
    tiny_folder: Path, tmp_path: Path, types: tuple[str, str, str], activation: str
) -> None:
    with_dense(activation_function=activation)(pooled_by(copied(tiny_folder, tmp_path)))
    listed(tmp_path, *zip(types, ("", "1_Pooling", "2_Dense"), strict=True), prefix="sentence_transformers.")
    (dense,) = describe_base(str(tmp_path), precision="float32", device=CPU).inputs.spec.modules
    assert isinstance(dense, DenseSpec) and dense.activation == activation.rpartition(".")[2]


@pytest.mark.parametrize("change", [truncation_side("left"), truncation(direction="Left")])
def test_a_folder_without_modules_is_read_as_before_whatever_side_it_truncates(
    tiny_folder: Path, tmp_path: Path, change: Change
) -> None:
    plain = load_base(str(tiny_folder), precision="float32", device=CPU)
    change(copied(tiny_folder, tmp_path))
    base = load_base(str(tmp_path), precision="float32", device=CPU)
    assert base.digest == plain.digest
    text = "order pizza now please " * 30
    assert base.inputs.encode([text]) == plain.inputs.encode([text])


@pytest.mark.parametrize("change", [truncation_side("right"), truncation()])
def test_truncation_on_the_right_is_no_reason_to_refuse(tiny_folder: Path, tmp_path: Path, change: Change) -> None:
    change(pooled_by(copied(tiny_folder, tmp_path)))
    assert load_base(str(tmp_path), precision="float32", device=CPU).inputs.encode(["order " * 99])[0].truncated


CODE = {"AutoModel": "modeling_new.NewModel", "AutoConfig": "configuration_new.NewConfig"}


def with_map(name: str, entries: Any) -> Change:
    return lambda folder: write(folder, name, {**json.loads((folder / name).read_text()), "auto_map": entries})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (with_map("config.json", CODE), "config.json: auto_map names code of the model's own ('modeling_new.NewModel')"),
        (with_map("config.json", {"AutoConfig": "c.Config"}), "config.json: auto_map names code of the model's own ('c.Config')"),
        (with_map("tokenizer_config.json", {"AutoTokenizer": ["t.Slow", None]}), "tokenizer_config.json: auto_map names code"),
        (with_map("tokenizer_config.json", ["t.Slow", None]), "tokenizer_config.json: auto_map names code"),
    ],
)
def test_a_model_with_code_of_its_own_is_refused(tiny_folder: Path, tmp_path: Path, change: Change, problem: str) -> None:
    change(copied(tiny_folder, tmp_path))
    assert all(problem in message and "remove auto_map if" in message for message in refusals(tmp_path))


def test_code_of_a_head_is_no_reason_to_refuse(tiny_folder: Path, tmp_path: Path) -> None:
    plain = load_base(str(tiny_folder), precision="float32", device=CPU)
    with_map("config.json", {"AutoModelForCausalLM": "m.Model"})(copied(tiny_folder, tmp_path))
    assert load_base(str(tmp_path), precision="float32", device=CPU).digest == plain.digest
