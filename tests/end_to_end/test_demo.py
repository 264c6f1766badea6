"""The program that `make demo` runs, with the default base model and initialization.

The program starts its own service.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from metatrain.tasks.normal_form import normal_form
from metatrain.tasks.table import STARTER, read_table
from service.running.demo import read_examples
from tests.end_to_end.conftest import ROOT


def run_demo(**variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "service", "demo"]
    return subprocess.run(
        command, env={**os.environ, **variables}, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_demo_adapts_predicts_and_compares() -> None:
    done = run_demo(QUICKSTUDY_API_KEY="of-another-service")
    assert done.returncode == 0, done.stderr
    support, query = read_examples()
    assert sum(line.endswith("right") or "WRONG, is " in line for line in done.stdout.splitlines()) == len(query) == 48
    accuracy = {}
    for title in ("default (meta-learned)", "default, without label words", "frozen prototypes", "plain LoRA from zero"):
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(title)]
        accuracy[title] = float(line.removeprefix(title).split("%")[0])
    assert accuracy["default (meta-learned)"] > accuracy["frozen prototypes"] > 60
    assert min(accuracy.values()) > 60
    assert len(support) == 30


def test_a_demo_that_cannot_start_reports_the_reason_and_fails(tmp_path: Path) -> None:
    done = run_demo(BASE_MODEL=str(tmp_path / "nowhere"))
    assert done.returncode == 1
    assert re.search("^error: base.model: no folder at '.*nowhere'", done.stderr, re.MULTILINE)


def test_the_demos_examples_are_in_no_training_data() -> None:
    starter = {normal_form(text) for texts in read_table(STARTER).texts.values() for text in texts}
    support, query = read_examples()
    texts = [normal_form(text) for text, _ in support + query]
    assert len(set(texts)) == len(texts) and not starter & set(texts)
    assert {label for _, label in support} == {label for _, label in query}
