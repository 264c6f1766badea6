"""A base model with a broken file, or with a name that no folder can have, is refused in one line."""

import json
import os
import shutil
from pathlib import Path

import pytest

from metatrain.errors import BaseModelError
from metatrain.models.loading import describe_base, load_base
from metatrain.models.source import Hub
from tests.folders import CPU, Change, copied, pointer, refusals, text, write


def truncated(share: float) -> Change:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        os.truncate(path, int(path.stat().st_size * share))

    return change


def template_without_tokens(folder: Path) -> None:
    """Let the tokenizer's library panic, which is not an Exception, when it is called."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    single = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}]
    processor = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}
    write(folder, "tokenizer.json", {**tokenizer, "post_processor": processor})


def dangling(name: str) -> Change:
    """Return the change of a file or folder to a link to nothing, as an incomplete download has it."""

    def change(folder: Path) -> None:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(folder / "blobs" / "53aa")

    return change


def adapter_alone(folder: Path) -> None:
    """Leave what PEFT saves: no configuration, no tokenizer, and other weights."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    write(folder, "adapter_config.json", {"peft_type": "LORA"})


def without_entry(name: str, entry: str) -> Change:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        write(folder, name, {key: value for key, value in content.items() if key != entry})

    return change


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
    "weights: a link to nothing": (dangling("model.safetensors"), "model.safetensors: No such file or directory"),
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
    "tokenizer: a template without its tokens": (template_without_tokens, "tokenizer files: no entry found for key"),
    "tokenizer: a limit in words": (text("tokenizer_config.json", '{"model_max_length": "64"}'), "model_max_length: expected"),
    "tokenizer: a limit of 2": (
        text("tokenizer_config.json", '{"model_max_length": 2}'),
        "model_max_length: expected a number of at least 8",
    ),
    "tokenizer: no added tokens": (
        without_entry("tokenizer.json", "added_tokens"),
        "tokenizer files: an entry is missing, or its type or value is not supported (KeyError: 'added_tokens')",
    ),
    "tokenizer: a link to nothing": (dangling("tokenizer.json"), "tokenizer.json: No such file or directory"),
    "tokenizer's settings: a link to nothing": (dangling("tokenizer_config.json"), "tokenizer_config.json: No such file"),
    "modules: a link to nothing": (dangling("modules.json"), "modules.json: No such file or directory"),
    "maximum length: a link to nothing": (
        dangling("sentence_bert_config.json"),
        "sentence_bert_config.json: No such file or directory",
    ),
    "pooling: a link to nothing": (dangling("1_Pooling"), "1_Pooling/config.json: No such file or directory"),
    "config: an entry of another type": (
        lambda f: write(f, "config.json", {**json.loads((f / "config.json").read_text()), "hidden_size": [1]}),
        "expected int, got list",
    ),
    "an adapter": (text("adapter_config.json", "{}"), "PEFT adapter"),
    "an adapter alone": (adapter_alone, "PEFT adapter"),
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
