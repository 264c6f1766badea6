"""Finding a base model locally or on the hub, in a process that records every network access."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from worker.errors import SettingsError
from worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "hf_aTokenThatIsInNoLog0123456789"
PROGRAM = """
import json, logging, socket, sys

accesses = []

def block_network(event, arguments):
    if event == "socket.getaddrinfo" or (event == "socket.connect" and arguments[0].family != socket.AF_UNIX):
        accesses.append(event)
        raise OSError("no network here")

logging.basicConfig(level="DEBUG")
sys.addaudithook(block_network)

from metatrain.models.source import Hub, locate
from metatrain.errors import BaseModelError
from worker.runtime import load_runtime
from worker.settings import WorkerSettings

settings = WorkerSettings(air_gapped=True)
results = {"initializations": len(load_runtime(settings, lambda digest: None).known.digests), "accesses": list(accesses)}
for name, hub in (("air-gapped", Hub(reachable=False, token=settings.hub_token)), ("online", Hub(token=settings.hub_token))):
    accesses.clear()
    try:
        locate("nobody/no-such-model", hub)
    except BaseModelError as error:
        results[name] = [str(error), len(accesses)]
results["repr"] = repr(hub) + repr(settings)
print("RESULTS", json.dumps(results))
"""


@pytest.fixture(scope="module")
def outcome(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """Run `PROGRAM`. Return (the results that it printed as JSON, its whole output)."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "token").write_text(TOKEN + "\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | {
        "BASE_MODEL": str(tiny_folder),
        "HF_HOME": str(folder),
        "HUB_TOKEN_FILE": str(folder / "token"),
        "PRECISION": "float32",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULTS "))
    return json.loads(line.removeprefix("RESULTS ")), done.stdout + done.stderr


def test_air_gapped_nothing_reaches_for_the_network(outcome: tuple[dict[str, Any], str]) -> None:
    results = outcome[0]
    assert results["initializations"] == 2 and results["accesses"] == []
    message, accesses = results["air-gapped"]
    assert "the hub may not be used (AIR_GAPPED); copy the model to a folder" in message and accesses == 0
    message, accesses = results["online"]
    assert "the hub did not provide it" in message and accesses > 0  # shows that the audit hook works


def test_the_hubs_token_is_in_no_log_and_no_message(outcome: tuple[dict[str, Any], str]) -> None:
    results, output = outcome
    assert "DEBUG" in output and TOKEN not in output and TOKEN not in json.dumps(results)


@pytest.mark.parametrize("content", [None, "", "two\nlines", "\x00", "é"])
def test_a_token_file_without_a_token_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError, match="HUB_TOKEN_FILE: ") as error:
        _ = WorkerSettings(hub_token_file=path).hub_token
    assert str(path) in str(error.value) and "lines" not in str(error.value)
    path.write_text(f" {TOKEN}\n")
    assert WorkerSettings(hub_token_file=path).hub_token == TOKEN
