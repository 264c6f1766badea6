"""The catalog of initializations: none is silently replaced or skipped."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from metatrain.artifacts.baselines import lora_from_zero
from metatrain.artifacts.catalog import load_catalog, report_not_taken
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


def test_what_is_not_taken_from_the_folder_is_logged_with_the_reason(
    tiny: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    init = replace(lora_from_zero(tiny), name="mine")
    for folder in ("mine", "other", "run/best"):
        save_initialization(replace(init, name=Path(folder).name), tmp_path / folder, tiny.attach(init.delta))
    described = tmp_path / "other" / "initialization.json"
    content = json.loads(described.read_text())
    content["base"].update(weights_sha256="0" * 64, model="no\x1b[31m model")
    described.write_text(json.dumps(content))
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "packed.zip").write_bytes(b"PK")
    (tmp_path / "history.jsonl").write_text("{}")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".hidden").mkdir()
    expected = {
        "empty": "it has no initialization.json",
        "gone": "it is a broken link",
        "other": "it is for the base model 'no\\x1b[31m model', which is not loaded",
        "packed.zip": "it is an archive: unpack it",
        "peft": "it has no initialization.json: an adapter of PEFT alone lacks the learning rates and the inner loop",
        "run": "it has no initialization.json, but its folder 'best' has: move that one up",
    }
    assert report_not_taken(tmp_path, [tiny]) == expected
    assert sorted(record.message for record in caplog.records) == [
        f"INITIALIZATIONS_DIR: {name!r} is not taken: {reason}" for name, reason in expected.items()
    ]


def test_a_folder_that_is_an_initialization_itself_is_refused(tiny: Base, tmp_path: Path) -> None:
    init = lora_from_zero(tiny)
    save_initialization(init, tmp_path / "mine", tiny.attach(init.delta))
    with pytest.raises(ArtifactError, match=r"INITIALIZATIONS_DIR: expected the folder above .* is an initialization itself"):
        load_catalog(tiny, tmp_path / "mine")
