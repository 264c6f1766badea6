"""Create a data folder with the service of one commit, and read it with the service of any commit.

`make_data_folder` creates several adapters, of which one is named, one pinned, one aliased, one evicted and one expired. It also
creates API keys of two tenants (one key is revoked, one is expired), sends a request with an Idempotency-Key, and leaves a job that
waits for a worker. `observe` serves a copy of the folder and reads everything. The service then recomputes the evicted adapter and
finishes the job.
"""

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import redis

from tests.upgrade.answers import INPUTS, adapt, client, describe, examples
from tests.upgrade.checkout import command, environment
from tests.upgrade.services import served

_TWO = {"book_table": 2, "cancel_order": 2, "reset_password": 2}
_ONCE = {"Idempotency-Key": "an-order-of-the-desk"}
_WAITING: dict[str, Any] = {
    "support": examples({"track_parcel": 4, "pay_invoice": 5}),
    "options": {"seed": 11, "label_words": False},
}
_KEPT: dict[str, Any] = {"support": examples(_TWO, first=6), "options": {"label_words": False}}


@dataclass(frozen=True)
class DataFolder:
    """The content of a data folder by name: adapter ids, the API's view of each adapter, and API keys."""

    adapters: dict[str, str]
    described: dict[str, dict[str, Any]]
    keys: dict[str, str]


def make_data_folder(code: Path, data: Path) -> DataFolder:
    """Create the data folder `data` with the service of the checkout `code`. Return its content."""
    with served(code, data) as url:
        with client(url) as http:
            adapters = dict(_adapters(http))
            descriptions = {name: describe(http, adapters[name]) for name in adapters if name != "expired"}
            http.put(f"/adapters/{adapters['pinned']}/pin").raise_for_status()
            for alias, name in (("desk.production", "aliased"), ("desk.old", "ready")):
                http.put(f"/aliases/{alias}", json={"adapter_id": adapters[name]}).raise_for_status()
            http.delete("/aliases/desk.old").raise_for_status()
            http.post("/adapt", json=_KEPT, headers=_ONCE).raise_for_status()
        keys = _keys(code, data)
        with client(url, keys["acme"]) as http:
            adapters["foreign"] = adapt(http, "/adapt", {"support": examples(_TWO), "name": "of another tenant"})["adapter_id"]
            descriptions["foreign"] = describe(http, adapters["foreign"])
        with redis.Redis.from_url((data / "url").read_text()) as records:
            assert records.delete(*records.scan_iter(f"qs:default:weights:{adapters['evicted']}:*", count=1000)) == 1
    with served(code, data, worker=False) as url, client(url, keys["default"]) as http:
        accepted = http.post("/adapt", json=_WAITING)
        assert accepted.status_code == 202, accepted.text
        adapters["waiting"] = accepted.json()["adapter_id"]
        assert _status(http, adapters["waiting"]) == "queued"
        assert _status(http, adapters["evicted"]) == "evicted"
    return DataFolder(adapters, descriptions, keys)


def observe(code: Path, data: Path, content: DataFolder) -> dict[str, Any]:
    """Serve the data folder `data` with the checkout `code`, and return everything that the API shows.

    Two services that interpret the folder in the same way return the same result. Give each service its own copy of the folder.
    """
    seen: dict[str, Any] = {}
    adapters = content.adapters
    with served(code, data) as url:
        seen["access"] = {name: _statuses(url, key) for name, key in {**content.keys, "none": "", "unknown": "qs_0_0"}.items()}
        seen["keys"] = _list_keys(code, data)
        with client(url, content.keys["default"]) as http:
            seen["waiting"] = _wait_for_end(http, adapters["waiting"])
            before = {name: _view(http, identity) for name, identity in adapters.items() if name not in ("waiting", "foreign")}
            seen["before"] = before
            ready = [name for name, view in before.items() if view["status"] in ("ready", "evicted")]
            seen["described"] = {name: describe(http, adapters[name]) for name in (*ready, "waiting")}
            seen["after"] = {name: _view(http, identity) for name, identity in adapters.items() if name != "foreign"}
            seen["expired"] = http.post("/predict", json={"adapter_id": adapters["expired"], "inputs": ["a"]}).json()["type"]
            seen["of another tenant"] = http.get(f"/adapters/{adapters['foreign']}").status_code
            seen["aliases"] = http.get("/aliases").raise_for_status().json()
            by_alias = http.post("/predict", json={"adapter_id": "desk.production", "inputs": list(INPUTS)})
            seen["by alias"] = by_alias.raise_for_status().json()
            seen["listed"] = [row["adapter_id"] for row in http.get("/adapters").raise_for_status().json()["adapters"]]
            seen["tagged"] = [row["adapter_id"] for row in http.get("/adapters", params={"tag": "x"}).json()["adapters"]]
            same_body = http.post("/adapt", json=_KEPT, headers=_ONCE)
            other_body = http.post("/adapt", json=_WAITING, headers=_ONCE)
            seen["same Idempotency-Key"] = same_body.json()["adapter_id"], same_body.status_code, other_body.json()["type"]
            seen["usage"] = _usage(http)
        with client(url, content.keys["acme"]) as http:
            seen["acme"] = describe(http, adapters["foreign"]), _usage(http)
    return seen


def _adapters(http: httpx.Client) -> Iterator[tuple[str, str]]:
    """Create the adapters of tenant `default` and yield (name, id) of each.

    Call this function before any API key exists, because its requests send none.
    """
    requests: dict[str, dict[str, Any]] = {
        "expired": {"support": examples(_TWO, first=2), "ttl_seconds": 1},
        "ready": {"support": examples(_TWO), "name": "the desk", "tags": ["x", "y"]},
        "pinned": {"support": examples({"book_table": 1, "pay_invoice": 1}), "ttl_seconds": 3600},
        "aliased": {"support": examples(_TWO), "initialization": "lora-from-zero", "options": {"steps": 2}, "tags": ["x"]},
        "evicted": {"support": examples(_TWO, first=4), "options": {"label_words": True, "seed": 3}},
        "kept": _KEPT,
    }
    for name, body in requests.items():
        yield name, adapt(http, "/adapt", body)["adapter_id"]
    parent = adapt(http, "/adapt", requests["ready"])["adapter_id"]
    yield "child", adapt(http, f"/adapters/{parent}/examples", {"support": examples({"track_parcel": 2})})["adapter_id"]


def _keys(code: Path, data: Path) -> dict[str, str]:
    """Create API keys while the service runs, and wait until it uses the new keys. Return {name: key}."""
    admin = ["--scope", "admin"]
    options = {"default": admin, "acme": ["--tenant", "acme"], "revoked": admin, "expired": ["--expires", "1s"]}
    options["reader"] = ["--scope", "predict", "--name", "reads"]
    created = {name: json.loads(_command(code, data, "create", "--json", *values)) for name, values in options.items()}
    _command(code, data, "revoke", created["revoked"]["id"])
    time.sleep(2.5)  # the service caches keys for a second
    return {name: str(key["key"]) for name, key in created.items()}


def _command(code: Path, data: Path, name: str, *arguments: str) -> str:
    command_line = [*command("quickstudy", code), "keys", "--data-dir", str(data), name, *arguments]
    done = subprocess.run(command_line, cwd=code, env=environment(code), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _list_keys(code: Path, data: Path) -> Any:
    return json.loads(_command(code, data, "list", "--json"))


def _statuses(url: str, key: str) -> dict[str, int]:
    """Return the HTTP statuses of one request per scope, all sent with `key`."""
    with client(url, key) as http:
        return {
            "read": http.get("/adapters").status_code,
            "adapt": http.post("/adapt?dry_run=true", json=_KEPT).status_code,
            "predict": http.post("/predict", json={"adapter_id": "a" + "0" * 40, "inputs": ["a"]}).status_code,
            "admin": http.get("/usage", params={"tenant": "another"}).status_code,
        }


def _status(http: httpx.Client, identity: str) -> str:
    return str(http.get(f"/adapters/{identity}").raise_for_status().json()["status"])


def _wait_for_end(http: httpx.Client, identity: str) -> str:
    """Wait until the job of an adapter has ended, and return its status."""
    for _ in range(600):
        if (status := _status(http, identity)) not in ("queued", "running"):
            break
        time.sleep(0.1)
    return status


def _view(http: httpx.Client, identity: str) -> dict[str, Any]:
    """Return what the API shows of an adapter, without durations, which differ between runs."""
    view: dict[str, Any] = http.get(f"/adapters/{identity}").raise_for_status().json()
    for name in ("timings", "recovery_ms"):
        del view[name]
    return view


def _usage(http: httpx.Client) -> dict[str, Any]:
    """Return a tenant's usage, without counts of the current minute, and without limits.

    The defaults of limits may change.
    """
    used: dict[str, Any] = http.get("/usage").raise_for_status().json()
    return {name: value for name, value in used.items() if "minute" not in name and name != "limits"}
