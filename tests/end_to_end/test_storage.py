"""Data at rest, with real embedded services: permissions, encryption, backup and restore."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from service.running.standalone import url_of
from tests.end_to_end.conftest import ROOT, Served, served
from tests.end_to_end.test_service import BODY, SUPPORT, identity, predict

NAMED = {**BODY, "name": "a telling name", "tags": ["telltale"]}
TEXTS = [example["input"] for example in SUPPORT] + ["a telling name", "telltale", '"play"']


def quickstudy(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of the command line."""
    variables = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "CACHE_URL")}
    command = [sys.executable, "-m", "service", *arguments]
    return subprocess.run(
        command, env={**variables, **environment}, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def found_in(folder: Path) -> set[str]:
    content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return {text for text in TEXTS if text.encode() in content}


def readable_by_others(folder: Path) -> list[Path]:
    return [path for path in (folder, *folder.rglob("*")) if stat.S_IMODE(path.stat().st_mode) & 0o077]


def not_ready(service: Served) -> list[str] | None:
    """Return what the service says is missing, or None if it does not answer."""
    try:
        missing: list[str] = service.http.get("/readyz").json()["missing"]
    except httpx.TransportError:
        return None
    return missing


def do_not_compress(data: Path) -> None:
    """Have Redis write texts into its file as they are, so that they can be searched for."""
    redis.Redis.from_url(url_of(data) or "").config_set("rdbcompression", "no")


@pytest.mark.long
def test_encryption_is_switched_on_for_a_data_folder_in_use(environment: dict[str, str], tmp_path: Path) -> None:
    data, keys = tmp_path / "data", tmp_path / "keys"
    data.mkdir(mode=0o755)
    assert quickstudy({}, "encryption", "new-key", str(keys)).returncode == 0
    encrypted = {**environment, "ENCRYPTION_KEY_FILE": str(keys)}
    with served(tmp_path, environment) as service:
        service.wait_ready()
        adapter = identity(service, NAMED)
        before = predict(service, adapter, ["order pizza"]).json()
        assert found_in(data) and not readable_by_others(data)
        service.terminate()
    with served(tmp_path, encrypted) as service:
        service.wait_ready()
        do_not_compress(data)
        assert predict(service, adapter, ["order pizza"]).json() == before
        done = quickstudy(encrypted, "encryption", "apply", "--data-dir", str(data))
        assert done.returncode == 0 and done.stdout.startswith("1 records and the weights of 1 adapters are now encrypted"), done
        assert not found_in(data) and not readable_by_others(data)
        later = identity(service, {**NAMED, "options": {"seed": 8}})
        state = service.http.get(f"/adapters/{later}").json()
        assert (state["name"], state["tags"], state["labels"]) == ("a telling name", ["telltale"], ["close", "order", "play"])
        assert not found_in(data)
        service.terminate()
    with served(tmp_path, environment) as service:
        deadline = time.monotonic() + 60
        while not_ready(service) != ["encryption_key"]:
            assert time.monotonic() < deadline, not_ready(service)
            time.sleep(0.2)
        for response in (
            predict(service, adapter, ["order pizza"]),
            service.http.get(f"/adapters/{later}"),
            service.http.get("/adapters"),
            service.http.post("/adapt", json=BODY),
        ):
            assert response.status_code == 503 and "which is not in ENCRYPTION_KEY_FILE" in response.json()["detail"], response.text
        service.terminate()
    with served(tmp_path, encrypted) as service:
        service.wait_ready()
        assert predict(service, adapter, ["order pizza"]).json() == before
        assert service.http.get(f"/adapters/{later}").json()["status"] == "ready"


@pytest.mark.long
def test_a_backup_is_restored_to_an_empty_data_folder(environment: dict[str, str], tmp_path: Path) -> None:
    first, second, file = tmp_path / "first", tmp_path / "second", tmp_path / "backup"
    first.mkdir()
    second.mkdir()
    with served(first, environment) as service:
        service.wait_ready()
        ready, pinned = identity(service, NAMED), identity(service, {**BODY, "options": {"seed": 2}})
        assert service.http.put(f"/adapters/{pinned}/pin").status_code == 204
        assert service.http.put("/aliases/prod", json={"adapter_id": pinned}).status_code == 200
        before = {name: predict(service, name, ["order pizza", "play"]).json() for name in (ready, pinned)}
        service.worker().suspend()
        queued = service.http.post("/adapt", json={**BODY, "options": {"seed": 3}}).json()["adapter_id"]
        made = quickstudy(environment, "keys", "--data-dir", str(first / "data"), "create", "--scope", "admin")
        assert made.returncode == 0, made
        key = made.stdout.strip()
        done = quickstudy(environment, "backup", str(file), "--data-dir", str(first / "data"))
        assert done.returncode == 0 and done.stdout.startswith(f"{file}: 3 records, "), done
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        again = quickstudy(environment, "backup", str(file), "--data-dir", str(first / "data"))
        assert again.stderr == f"error: FILE: expected the name of a new file, got {file}, which exists\n"
        refused = quickstudy(environment, "restore", str(file), "--data-dir", str(first / "data"))
        assert (
            refused.stderr.startswith("error: FILE: expected a server without records, API keys and limits")
            and refused.returncode == 1
        )
        service.worker().resume()
    with served(second, {**environment, "READAPT_WAIT_SECONDS": "30"}) as service:
        service.wait_ready()
        done = quickstudy(environment, "restore", str(file), "--data-dir", str(second / "data"))
        assert done.stdout == "3 records and weights of 0 restored; 1 unfinished jobs run again\n", done
        until_closed(service)
        service.http.headers["Authorization"] = f"Bearer {key}"
        for name, answer in before.items():
            assert predict(service, name, ["order pizza", "play"]).json() == answer  # with the same digest of the weights
        assert service.http.get("/aliases/prod").json()["adapter_id"] == pinned
        assert service.http.get(f"/adapters/{pinned}").json()["pinned"] is True
        assert until_ended(service, queued)["status"] == "ready"
        usage = service.http.get("/usage").json()
        assert usage["adapters"]["used"] == 3 if isinstance(usage["adapters"], dict) else usage["adapters"] == 3


def until_closed(service: Served) -> None:
    """Wait until the service asks for a key."""
    deadline = time.monotonic() + 10
    while service.http.get("/usage").status_code != 401:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def until_ended(service: Served, adapter: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while (state := service.http.get(f"/adapters/{adapter}").json())["status"] not in ("ready", "failed"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return dict(state)
