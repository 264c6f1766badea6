"""Every parameter of a base model comes from its file, or its folder is refused in one short line."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from metatrain.errors import BaseModelError
from metatrain.models.loading import describe_base, load_base
from metatrain.models.source import Hub
from tests.folders import change_weights, copied, listed, pooled_by, write
from tests.tiny import save_tiny_model

CPU = torch.device("cpu")
TEXTS = ["order pizza", "close my account please", "play some music now"]
QUERY = "encoder.layer.0.attention.self.query.weight"
Change = Callable[[Path], Any]


def features(folder: Path) -> torch.Tensor:
    base = load_base(str(folder), precision="float32", device=CPU)
    return base.features(None, base.inputs.collate(base.inputs.encode(TEXTS)))


def refusals(folder: Path) -> list[str]:
    """Return the messages with which a folder is refused, with its weights and by its description alone."""
    found = []
    for read in (load_base, describe_base):
        with pytest.raises(BaseModelError) as error:
            read(str(folder), precision="float32", device=CPU)
        message = str(error.value)
        assert message.startswith("base.model: ") and len(message) < 300 and message.isprintable(), message
        found.append(message)
    return found


def renamed(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({"0.auto_model." + name: tensor for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def truncated(share: float) -> Change:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        os.truncate(path, int(path.stat().st_size * share))

    return change


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


def pointer(name: str) -> Change:
    content = "version https://git-lfs.github.com/spec/v1\noid sha256:53aa\nsize 90868376\n"
    return lambda folder: (folder / name).write_text(content)


def text(name: str, content: str | bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def template_without_tokens(folder: Path) -> None:
    """Let the tokenizer's library panic, which is not an Exception, when it is called."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    single = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}]
    processor = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}
    write(folder, "tokenizer.json", {**tokenizer, "post_processor": processor})


def link_to_nothing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "blobs" / "53aa")


def folder_of_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()


FILES: dict[str, tuple[Change, str]] = {
    "weights: pointer": (pointer("model.safetensors"), "model.safetensors is a Git LFS pointer"),
    "weights: half": (truncated(0.5), "not a complete safetensors file: expected "),
    "weights: one byte less": (truncated(0.99999), "not a complete safetensors file: expected "),
    "weights: cut in the header": (truncated(0.001), "not a complete safetensors file"),
    "weights: empty": (truncated(0), "not a complete safetensors file"),
    "weights: something else": (text("model.safetensors", "PK\x03\x04" * 99), "not a complete safetensors file"),
    "weights: a link to nothing": (link_to_nothing, "model.safetensors: No such file or directory"),
    "weights: a folder": (folder_of_weights, "model.safetensors: Is a directory"),
    "config: pointer": (pointer("config.json"), "config.json is a Git LFS pointer"),
    "config: cut": (text("config.json", '{"model_type": "be'), "config.json is not valid JSON"),
    "config: a list": (text("config.json", "[]"), "config.json: expected a JSON object, got an array"),
    "config: not text": (text("config.json", b"\xff\xfe\x00{"), "config.json is not valid JSON"),
    "config: too deep": (text("config.json", "[" * 99_999), "config.json"),
    "config: no type": (text("config.json", "{}"), ""),
    "config: an unknown type": (text("config.json", '{"model_type": "no\\nsuch\\u001btype"}'), ""),
    "config: a width in words": (text("config.json", '{"model_type": "bert", "hidden_size": "wide"}'), ""),
    "config: no heads": (text("config.json", '{"model_type": "bert", "hidden_size": 32, "num_attention_heads": 0}'), ""),
    "config: an encoder-decoder": (text("config.json", '{"model_type": "t5"}'), "t5 is an encoder-decoder"),
    "config: images": (text("config.json", '{"model_type": "clip"}'), "clip has no hidden_size"),
    "config: layers without end": (
        lambda f: write(f, "config.json", {**json.loads((f / "config.json").read_text()), "num_hidden_layers": 10**20}),
        "num_hidden_layers is 1",
    ),
    "config: other weights": (
        lambda f: write(f, "config.json", {**json.loads((f / "config.json").read_text()), "transformers_weights": "x.safetensors"}),
        "transformers_weights is not supported",
    ),
    "tokenizer: pointer": (pointer("tokenizer.json"), "tokenizer.json is a Git LFS pointer"),
    "tokenizer's settings: pointer": (pointer("tokenizer_config.json"), "tokenizer_config.json is a Git LFS pointer"),
    "special tokens: pointer": (pointer("special_tokens_map.json"), "special_tokens_map.json is a Git LFS pointer"),
    "added tokens: pointer": (pointer("added_tokens.json"), "added_tokens.json is a Git LFS pointer"),
    "tokenizer: cut": (text("tokenizer.json", '{"version": "1.0", '), "tokenizer.json is not valid JSON"),
    "tokenizer: null": (text("tokenizer.json", "null"), "tokenizer.json: expected a JSON object, got null"),
    "tokenizer: something else": (text("tokenizer.json", '{"version": "1.0", "model": {"type": "None"}}'), ""),
    "tokenizer: a template without its tokens": (template_without_tokens, "tokenizer: no entry found for key"),
    "tokenizer: a limit in words": (text("tokenizer_config.json", '{"model_max_length": "64"}'), "model_max_length: expected"),
    "tokenizer: a limit of 2": (
        text("tokenizer_config.json", '{"model_max_length": 2}'),
        "model_max_length: expected a number of at least 8",
    ),
    "an adapter": (text("adapter_config.json", "{}"), "PEFT adapter"),
    "index: a file is missing": (
        lambda f: (
            (f / "model.safetensors").rename(f / "model-1.safetensors"),
            write(f, "model.safetensors.index.json", {"weight_map": {"a": "model-2.safetensors"}}),
        ),
        "model-2.safetensors",
    ),
    "index: outside": (
        lambda f: (
            (f / "model.safetensors").rename(f / "model-1.safetensors"),
            write(f, "model.safetensors.index.json", {"weight_map": {"a": "../model-1.safetensors"}}),
        ),
        "expected a weight_map",
    ),
    "index: a name that no file has": (
        lambda f: (
            (f / "model.safetensors").rename(f / "model-1.safetensors"),
            write(f, "model.safetensors.index.json", {"weight_map": {"a": "model\0.safetensors"}}),
        ),
        "null byte",
    ),
    "index: cut": (
        lambda f: (
            (f / "model.safetensors").rename(f / "model-1.safetensors"),
            (f / "model.safetensors.index.json").write_text('{"weight'),
        ),
        "model.safetensors.index.json is not valid JSON",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_broken_file_is_refused_in_one_short_line(tiny_folder: Path, tmp_path: Path, case: str) -> None:
    change, problem = FILES[case]
    change(copied(tiny_folder, tmp_path))
    assert all(problem in message for message in refusals(tmp_path))


def test_a_long_or_strange_path_leaves_the_message_short(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / ("\x1b[31m\n" + "a" * 120) / ("b" * 200)
    folder.parent.mkdir()
    (copied(tiny_folder, folder) / "config.json").write_text("{" + "\x00\n" * 999)
    for message in refusals(folder):
        assert "bbb does not load as a text encoder: config.json is not valid JSON" in message


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
    "modules: too long": (modules(("Transformer", "a" * 3000)), "aaa…': File name too long"),
    "modules: too long for a path": (modules(("Transformer", "a/" * 3000)), "a/a…': File name too long"),
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


NAMES = {
    "an unknown user": "~nosuchuser/x",
    "too long": "a" * 5000,
    "too long for a path": "/" + "a/" * 3000,
    "too long for a folder": "./" + "a" * 5000,
    "a null character": "/models/\0",
}


@pytest.mark.parametrize("case", NAMES)
def test_a_name_that_no_folder_can_have_is_refused_in_one_short_line(case: str) -> None:
    for read in (load_base, describe_base):
        with pytest.raises(BaseModelError) as error:
            read(NAMES[case], precision="float32", device=CPU, hub=Hub(reachable=False))
        message = str(error.value)
        assert message.startswith("base.model: ") and len(message) < 400 and message.isprintable(), message
        assert "is not a local folder" in message if case == "too long" else "no folder at " in message
