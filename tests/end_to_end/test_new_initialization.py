"""A new version of an initialization: no adapter of the old version is lost."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import redis
from click.testing import CliRunner

from metatrain.artifacts.baselines import lora_from_zero
from metatrain.artifacts.initialization import Initialization, save_initialization
from metatrain.models.base import Base
from service.__main__ import main
from service.running.standalone import url_of
from tests.end_to_end.conftest import Served, served
from tests.end_to_end.test_service import BODY, identity, predict
from worker.ledger.initializations import Initializations


def save_version(tiny: Base, folder: Path, version: int) -> Initialization:
    """Save a version of the initialization `mine`.

    Versions differ in their scale and their base update.
    """
    update = {name: p + 0.1 * version for name, p in tiny.parameters(["encoder.layer.1.output.*"]).items()}
    init = replace(lora_from_zero(tiny), name="mine", scale=8.0 * version, base_update=update)
    shutil.rmtree(folder, ignore_errors=True)
    save_initialization(init, folder / "mine", tiny.attach(init.delta))
    return init


def evict(client: "redis.Redis", adapter: str) -> None:
    (key,) = client.scan_iter(f"qs:default:weights:{adapter}:*")
    client.delete(key)


def test_adapters_outlive_their_version_of_an_initialization(environment: dict[str, str], tiny: Base, tmp_path: Path) -> None:
    folder = tmp_path / "initializations"
    one_adapter = {"BANK_MB": "0.001", "SHELF_MB": "0"}  # all other adapters are read from the cache
    variables = {**environment, "INITIALIZATIONS_DIR": str(folder), "READAPT_WAIT_SECONDS": "30", **one_adapter}
    body = {**BODY, "initialization": "mine", "options": {"steps": 2}}
    old = save_version(tiny, folder, 1)
    with served(tmp_path, variables) as service:
        service.wait_ready()
        plain, pinned, aliased = (identity(service, {**body, "options": {"steps": 2, "seed": seed}}) for seed in range(3))
        service.http.put(f"/adapters/{pinned}/pin").raise_for_status()
        service.http.put("/aliases/desk", json={"adapter_id": aliased}).raise_for_status()
        before = {name: answers(service, name) for name in (plain, pinned, "desk")}
        service.process.kill()
        service.process.wait()
    new = save_version(tiny, folder, 2)
    with served(tmp_path, variables) as service:
        service.wait_ready()
        assert {name: answers(service, name) for name in before} == before
        fresh = identity(service, body)
        assert service.http.get(f"/adapters/{fresh}").json()["initialization_digest"] == new.digest != old.digest
        assert fresh != plain and answers(service, fresh) != before[plain]

        client = redis.Redis.from_url(url_of(tmp_path / "data") or "")
        for adapter in (plain, pinned, aliased):
            evict(client, adapter)
        assert {service.http.get(f"/adapters/{name}").json()["status"] for name in (plain, pinned, aliased)} == {"evicted"}
        assert {name: answers(service, name) for name in before} == before  # adapted again from the old version
        assert service.http.get(f"/adapters/{pinned}").json()["pinned"] is True
        described = {name: service.http.get(f"/adapters/{name}").json()["initialization_digest"] for name in (plain, pinned)}
        assert set(described.values()) == {old.digest}
        more = {"support": [{"input": "cheese pizza", "label": "order"}], "options": {"steps": 2}}
        grown = service.http.post(f"/adapters/{plain}/examples", json=more, headers={"Prefer": "wait=30"}).json()["adapter_id"]
        assert service.http.get(f"/adapters/{grown}").json()["initialization_digest"] == old.digest

        assert command(tmp_path, "move", "mine", old.digest[:12]).endswith(
            f"mine now means {old.digest[:16]} on {tiny.spec.model}\n"
        )
        assert identity(service, {**body, "options": {"steps": 2, "seed": 0}}) == plain
        listed = {init["name"]: init["digest"] for init in service.http.get("/initializations").json()["initializations"]}
        assert listed["mine"] == old.digest
        assert f"error: {old.digest[:16]}: the name mine points at it" in command(tmp_path, "forget", old.digest)
        assert command(tmp_path, "move", "mine", "--reset") == ""
        assert identity(service, body) == fresh
        assert f"error: {old.digest[:16]}: 4 records need it" in command(tmp_path, "forget", old.digest)
        stored = Initializations(client)
        damaged = stored.read(new.digest)
        assert damaged is not None
        stored.store("f" * 64, replace(damaged, content=damaged.content[:-3]))
        stored.point(damaged.base, "broken", "f" * 64)
        refused = service.http.post("/adapt", json={**body, "initialization": "broken"})
        assert refused.status_code == 422 and "a usable one" in refused.json()["detail"]
        assert identity(service, body) == fresh  # no other name is affected
        names = {init["name"] for init in service.http.get("/initializations").json()["initializations"]}
        assert "mine" in names and "broken" not in names
        stored.point(damaged.base, "broken", None)
        assert stored.forget("f" * 64) == 0
        client.close()
        rows = {row["digest"]: row for row in json.loads(command(tmp_path, "list", "--json"))}
        assert {digest: row["records"] for digest, row in rows.items()} == {old.digest: 4, new.digest: 1}
        assert {row["name"] for row in rows.values()} == {"mine"} and not any(row["names"] for row in rows.values())


def command(folder: Path, *arguments: str) -> str:
    """Run `quickstudy initializations` on the service's data folder, and return what it prints."""
    return CliRunner().invoke(main, ["initializations", "--data-dir", str(folder / "data"), *arguments]).output


def answers(service: Served, adapter: str) -> object:
    response = predict(service, adapter, ["order pizza", "close it please"])
    assert response.status_code == 200, response.text
    return response.json()["predictions"]
