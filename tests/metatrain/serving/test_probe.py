"""The load-time probe of a base model that takes very long rows."""

import json
from pathlib import Path

from transformers import BertConfig, BertModel

from metatrain.artifacts.baselines import lora_from_zero
from metatrain.models.loading import load_base
from metatrain.serving.probe import LONGEST, probe
from tests.folders import CPU, copied, write


def test_the_probe_of_a_model_with_many_positions_takes_a_row_of_bounded_length(tiny_folder: Path, tmp_path: Path) -> None:
    config = BertConfig.from_pretrained(copied(tiny_folder, tmp_path), max_position_embeddings=4096)
    BertModel(config).save_pretrained(tmp_path)
    write(
        tmp_path,
        "tokenizer_config.json",
        {**json.loads((tmp_path / "tokenizer_config.json").read_text()), "model_max_length": 4096},
    )
    base = load_base(str(tmp_path), precision="float32", device=CPU)
    lengths: list[int] = []
    hook = base.model.register_forward_pre_hook(
        lambda _module, _args, inputs: lengths.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    probe(base, base.attach(lora_from_zero(base).delta))
    hook.remove()
    assert base.spec.max_length == 4096 and max(lengths) == LONGEST < 4096
