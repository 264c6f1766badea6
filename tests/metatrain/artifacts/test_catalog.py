"""The catalog of initializations: none is silently replaced or skipped."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from metatrain.artifacts.baselines import lora_from_zero
from metatrain.artifacts.catalog import load_catalog
from metatrain.artifacts.initialization import save_initialization
from metatrain.errors import ArtifactError
from metatrain.models.base import Base


def test_a_baseline_does_not_replace_another(tiny: Base) -> None:
    with pytest.raises(ArtifactError, match="two task kinds have one named 'lora-from-zero'"):
        load_catalog(tiny, baselines=[lora_from_zero(tiny), lora_from_zero(tiny)])


@pytest.mark.parametrize("content", ["{nope", "[]", '{"base": null}', '{"base": 3}', "{}"])
@pytest.mark.parametrize("others_skipped", [False, True])
def test_a_broken_description_is_one_line(tiny: Base, tmp_path: Path, content: str, others_skipped: bool) -> None:
    """Expect an error from a broken file even if files for other base models are skipped.

    A broken file does not say which base model it is for.
    """
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "initialization.json").write_text(content)
    with pytest.raises(ArtifactError) as error:
        load_catalog(tiny, tmp_path, others_skipped=others_skipped)
    assert "broken/initialization.json: " in str(error.value) and "\n" not in str(error.value)


def test_those_of_other_base_models_are_skipped_only_if_asked_to(tiny: Base, tmp_path: Path) -> None:
    init = replace(lora_from_zero(tiny), name="mine")
    for name in ("mine", "other"):
        save_initialization(replace(init, name=name), tmp_path / name, tiny.attach(init.delta))
    described = tmp_path / "other" / "initialization.json"
    content = json.loads(described.read_text())
    content["base"]["weights_sha256"] = "0" * 64
    described.write_text(json.dumps(content))
    assert set(load_catalog(tiny, tmp_path, others_skipped=True)) == {"mine"}
    with pytest.raises(ArtifactError, match=r"base\.weights_sha256 is '0+'"):
        load_catalog(tiny, tmp_path)
