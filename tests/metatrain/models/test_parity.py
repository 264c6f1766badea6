"""Features equal the vectors of sentence-transformers over saved folders.

`make bench-parity` runs the whole matrix.
"""

import dataclasses
import itertools
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip(
    "sentence_transformers", reason="the extra `dev` installs sentence-transformers, which the features are compared with"
)

from benchmarks.parity import TOLERANCE, difference
from benchmarks.saved_folders import DENSE, LAYOUTS, POOLINGS, PROMPTS, REORDERED, Saved, save
from metatrain.models.loading import load_base
from tests.folders import change_weights, write
from tests.tiny import WITHOUT_SDPA

SAMPLE = [
    *(Saved(pooling=pooling, layout=layout) for pooling, layout in itertools.product(POOLINGS, LAYOUTS)),
    Saved(pooling=REORDERED),
    *(Saved(dense=dense, prompt=prompt, normalized=True) for dense, prompt in itertools.product(DENSE[1:], PROMPTS[1:])),
    *(
        Saved(lower_case=True, pooling=("cls",), dense=dense, layout=layout)
        for dense, layout in itertools.product(DENSE[:2], LAYOUTS)
    ),
    *(
        Saved(architecture, pooling, layout=layout)
        for architecture, pooling, layout in itertools.product(WITHOUT_SDPA, (("mean",), ("cls", "mean")), LAYOUTS)
    ),
    *(
        Saved(architecture, pooling, prompt=prompt, layout=layout)
        for architecture, pooling, prompt, layout in itertools.product(
            ("llama", "qwen3"), (("lasttoken",), ("weightedmean",), ("max", "weightedmean", "lasttoken")), PROMPTS[1:], LAYOUTS[:1]
        )
    ),
]
"""Folders in which every value of every dimension of the matrix occurs."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parts")


@pytest.mark.parametrize("saved", SAMPLE, ids=lambda saved: ", ".join(f"{k}: {v}" for k, v in saved.values().items()))
def test_features_equal_those_of_sentence_transformers(saved: Saved, parts: Path, tmp_path: Path) -> None:
    assert difference(save(saved, parts, tmp_path / "saved")) < TOLERANCE


def test_the_sample_has_every_value_of_the_matrix() -> None:
    for field in dataclasses.fields(Saved):
        values = {getattr(saved, field.name) for saved in SAMPLE}
        assert {"pooling": {*POOLINGS, REORDERED}, "prompt": set(PROMPTS), "dense": set(DENSE), "layout": set(LAYOUTS)}.get(
            field.name, values
        ) == values


def test_modules_at_other_paths_are_read_there(parts: Path, tmp_path: Path) -> None:
    saved = Saved(pooling=("max",), dense="tanh", layout="old")
    folder = save(saved, parts, tmp_path / "saved")
    (folder / "0_Transformer").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json"):
        (folder / name).rename(folder / "0_Transformer" / name)
    (folder / "1_Pooling").rename(folder / "pool")
    (folder / "2_Dense").rename(folder / "dense")
    kinds = {"Transformer": "0_Transformer", "Pooling": "pool", "Dense": "dense"}
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds.items())
    ]
    write(folder, "modules.json", entries)
    assert difference(folder) < TOLERANCE
    base = load_base(str(folder), precision="bfloat16", device=torch.device("cpu"))
    assert base.parameters(["encoder.layer.0.output.dense.bias"])  # read again, in float32


def test_the_maximum_length_is_the_stated_one(parts: Path, tmp_path: Path) -> None:
    """The stated length comes before the tokenizer's limit of 64, but not before the model's 72 positions."""
    lengths = {}
    for stated in (9, 64, 70, 300):
        folder = save(Saved(layout="old"), parts, tmp_path / str(stated))
        write(folder, "sentence_bert_config.json", {"max_seq_length": stated})
        lengths[stated] = load_base(str(folder), precision="float32", device=torch.device("cpu")).spec.max_length
        if stated < 300:
            assert difference(folder) < TOLERANCE
    assert lengths == {9: 9, 64: 64, 70: 70, 300: 72}


def test_a_layer_norm_a_dropout_and_a_number_of_dimensions_are_reproduced(parts: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = save(Saved(pooling=("cls", "max")), parts, tmp_path / "saved")
    write(folder, "2_LayerNorm/config.json", {"dimension": 64})
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(64, generator=generator) for name in ("norm.weight", "norm.bias")}
    save_file(tensors, folder / "2_LayerNorm" / "model.safetensors")
    write(folder, "3_Dropout/config.json", {"dropout": 0.5})
    names = ("Transformer", ""), ("Pooling", "1_Pooling"), ("LayerNorm", "2_LayerNorm"), ("Dropout", "3_Dropout")
    entries = [{"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{k}"} for i, (k, p) in enumerate(names)]
    write(folder, "modules.json", entries)
    write(folder, "config_sentence_transformers.json", {"truncate_dim": 50, "prompts": {}})
    assert difference(folder) < TOLERANCE
    assert load_base(str(folder), precision="float32", device=torch.device("cpu")).feature_size == 50


def test_a_pooler_that_the_file_lacks_changes_nothing(parts: Path, tmp_path: Path) -> None:
    folder = save(Saved(pooling=("cls",)), parts, tmp_path / "saved")
    change_weights(folder, {"pooler.dense.weight": None, "pooler.dense.bias": None})
    assert difference(folder) < TOLERANCE


def test_the_default_base_model_has_its_own_vectors(tmp_path: Path) -> None:
    from metatrain.models.source import locate

    folder = tmp_path / "minilm"
    shutil.copytree(locate("text"), folder)
    assert difference(folder) < TOLERANCE
