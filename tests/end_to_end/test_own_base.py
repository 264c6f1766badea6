"""A base model of the operator's own: without a trained initialization, and one that does not load."""

from pathlib import Path

from tests.end_to_end.conftest import served
from tests.end_to_end.test_service import BODY
from tests.folders import copied

WAIT = {"Prefer": "wait=60"}


def test_a_base_model_without_trained_initializations_adapts_with_those_that_need_no_training(
    tiny_folder: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    variables = {name: value for name, value in environment.items() if name != "INITIALIZATIONS_DIR"}
    with served(tmp_path, {**variables, "BASE_MODEL": str(tiny_folder)}) as running:
        running.wait_ready()
        body = {name: value for name, value in BODY.items() if name != "initialization"}
        refused = running.http.post("/adapt", json=body)
        made = running.http.post("/adapt", json={**body, "initialization": "lora-from-zero"}, headers=WAIT)
    assert refused.status_code == 422
    assert refused.json()["detail"] == (
        "initialization: expected one of frozen-prototypes, lora-from-zero (none is trained for this base model and named default; "
        "`metatrain train` makes one), got 'default'"
    )
    assert made.status_code == 200 and made.json()["status"] == "ready", made.text


def test_a_base_model_that_does_not_load_ends_serve_with_one_line(
    tiny_folder: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    (copied(tiny_folder, tmp_path / "base") / "config.json").write_text("{")
    with served(tmp_path, {**environment, "BASE_MODEL": str(tmp_path / "base")}, forked=False) as running:
        assert running.process.wait(60) == 1
        lines = [line for line in running.log.read_text().splitlines() if "error" in line or "embedded" in line]
    (line,) = lines
    assert line.startswith("error: base.model: ") and "/base does not load as a text encoder: config.json is not valid JSON" in line
