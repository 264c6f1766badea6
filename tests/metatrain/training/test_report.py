"""The report of a real training run, written by `metatrain train --report`."""

import json
from pathlib import Path

import yaml
from click.testing import CliRunner

from metatrain.cli import main
from tests.metatrain.training.plans import content


def test_a_run_writes_a_report_and_tensorboard_scalars(tiny_folder: Path, tmp_path: Path) -> None:
    plan = content(tiny_folder, start={"rates_by_step": True})
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    command = ["train", str(tmp_path / "plan.yaml"), "--out", str(tmp_path / "run"), "--report", "--tensorboard"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "run" / "report.html").read_text()
    for title in ("Outer loop", "Validation by data set", "Accuracy by inner step", "Learned rates by layer", "Time and memory"):
        assert title in page
    assert page.count("<svg") == 5 and "fomaml" in page
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    steps = [event for event in log if event["event"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, 9))
    assert all(event["seconds"] > 0 and event["peak_memory_mb"] > 1 and event["mode"] == "first_order" for event in steps)
