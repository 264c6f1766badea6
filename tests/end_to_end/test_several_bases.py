"""Two base models in one deployment: jobs and predictions always use the right one.

The two models differ only in their pooling.
"""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis

from service.running.standalone import url_of
from tests.end_to_end.conftest import Served, served
from tests.end_to_end.test_service import BODY
from tests.service.test_remote_predictor import predictor

INPUTS = ["order pizza now", "close my account please", "play music"]
WAIT = {"Prefer": "wait=60"}
Predictions = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folders(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return two model folders: the tiny model with mean pooling, and a copy with first-token pooling."""
    other = tmp_path_factory.mktemp("bases") / "first-token"
    shutil.copytree(tiny_folder, other)
    (other / "1_Pooling").mkdir()
    (other / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    )
    return str(tiny_folder), str(other)


@pytest.fixture(scope="module")
def service(
    folders: tuple[str, str], environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Served, Path]]:
    folder = tmp_path_factory.mktemp("both")
    with served(folder, {**environment, "BASE_MODEL": ",".join(folders)}) as running:
        running.wait_ready()
        yield running, folder


def predictions_of_single_base(name: str, environment: dict[str, str], folder: Path) -> Predictions:
    """Return the predictions of a service that has only the base model `name`."""
    # The initializations in the environment were made for the first base model, so leave them out.
    variables = {key: value for key, value in environment.items() if key != "INITIALIZATIONS_DIR"}
    with served(folder, {**variables, "BASE_MODEL": name}) as running:
        running.wait_ready()
        return predictions(running, adapted(running, None))


def adapted(running: Served, base_model: str | None, **more: Any) -> str:
    body = {**BODY, **({} if base_model is None else {"base_model": base_model}), **more}
    answer = running.http.post("/adapt", json=body, headers=WAIT)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["adapter_id"])


def predictions(running: Served, identity: str) -> Predictions:
    answer = running.http.post("/predict", json={"adapter_id": identity, "inputs": INPUTS})
    assert answer.status_code == 200, answer.text
    return list(answer.json()["predictions"])


def close(left: Predictions, right: Predictions) -> bool:
    probabilities = [[p for row in rows for _, p in sorted(row["probabilities"].items())] for rows in (left, right)]
    return all(abs(a - b) < 1e-5 for a, b in zip(*probabilities, strict=True))


@pytest.mark.long
def test_each_base_model_answers_as_in_a_deployment_of_its_own(
    service: tuple[Served, Path], folders: tuple[str, str], environment: dict[str, str], tmp_path: Path
) -> None:
    running, folder = service
    url = url_of(folder / "data")
    assert url is not None
    client = redis.Redis.from_url(url)
    ids = [adapted(running, name) for name in folders]
    assert len(set(ids)) == 2 and adapted(running, None) == ids[0]  # without `base_model`, the first one is used
    both = [predictions(running, identity) for identity in ids]
    assert not close(*both)
    for number, name in enumerate(folders):
        (tmp_path / str(number)).mkdir()
        assert close(both[number], predictions_of_single_base(name, environment, tmp_path / str(number)))
        assert running.http.get(f"/adapters/{ids[number]}").json()["base_model"] == name
    queues = client.smembers("qs:queues")
    assert len(queues) == 2
    assert len({client.hget(f"qs:default:adapter:{identity}", "queue") for identity in ids}) == 2
    digests = [running.http.get(f"/adapters/{identity}").json()["digest"] for identity in ids]
    assert len(set(digests)) == 2
    for key in client.scan_iter("qs:default:weights:*"):  # evict all weights; each must be recomputed on its own base model
        client.delete(key)
    for name, identity, digest, before in zip(folders, ids, digests, both, strict=True):
        assert adapted(running, name) == identity
        view = running.http.get(f"/adapters/{identity}").json()
        assert view["digest"] == digest and close(predictions(running, identity), before)


def test_concurrent_jobs_of_both_base_models_are_kept_apart(service: tuple[Served, Path], folders: tuple[str, str]) -> None:
    running, _ = service
    jobs = [(name, seed) for seed in range(8) for name in folders]
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda job: adapted(running, job[0], options={"seed": 500 + job[1], "steps": 3}), jobs))
        answers = list(pool.map(lambda identity: predictions(running, identity), ids))
    for number in range(0, len(jobs), 2):
        assert close(answers[number], answers[0]) and close(answers[number + 1], answers[1])
    assert not close(answers[0], answers[1])


def test_readiness_initializations_and_an_unknown_base_model(service: tuple[Served, Path], folders: tuple[str, str]) -> None:
    running, _ = service
    assert running.http.get("/readyz").json() == {"status": "ready", "missing": [], "initializations_missing": []}
    listed = running.http.get("/initializations").json()["initializations"]
    assert {(init["name"], init["base_model"]) for init in listed if init["name"] == "lora-from-zero"} == {
        ("lora-from-zero", name) for name in folders
    }
    wrong = running.http.post("/adapt", json={**BODY, "base_model": "none/such"})
    assert wrong.status_code == 422
    assert wrong.json()["detail"] == f"base_model: expected one of {', '.join(folders)}, got 'none/such'"


@pytest.mark.long
def test_a_separate_predictor_process_serves_both_base_models(
    folders: tuple[str, str], environment: dict[str, str], tmp_path: Path
) -> None:
    socket = f"unix://{tmp_path}/p.sock"
    variables = {**environment, "BASE_MODEL": ",".join(folders)}
    with served(tmp_path, {**variables, "PREDICTOR_URL": socket}) as running:
        data_url = None
        while data_url is None:
            data_url = url_of(tmp_path / "data")
        with predictor(socket, {**variables, "REDIS_URL": data_url}, tmp_path / "predictor.log"):
            running.wait_ready()
            both = [predictions(running, adapted(running, name)) for name in folders]
            assert not close(*both)


def test_examples_are_never_moved_to_another_base_model(
    service: tuple[Served, Path], folders: tuple[str, str], environment: dict[str, str]
) -> None:
    """Refuse more examples for an adapter whose base model is no longer served.

    The remaining base model has an initialization of the same name, but it must not be used instead. Keep this test last: it stops
    the service, and starts another one on its data folder.
    """
    running, folder = service
    identity = adapted(running, folders[1], initialization="lora-from-zero")
    body = {"support": [{"input": "turn the music off", "label": "play"}]}
    grown = running.http.post(f"/adapters/{identity}/examples", json=body, headers=WAIT)
    assert grown.status_code == 200, grown.text
    view = running.http.get(f"/adapters/{grown.json()['adapter_id']}").json()
    assert view["base_model"] == folders[1] and view["parent"] == identity
    running.stop()
    with served(folder, {**environment, "BASE_MODEL": folders[0]}) as running:
        running.wait_ready()
        for query in ("", "?dry_run=true"):
            refused = running.http.post(f"/adapters/{identity}/examples{query}", json=body, headers=WAIT)
            assert refused.status_code == 409, refused.text
            assert (
                refused.json()["type"] == "/problems/adapter-not-ready" and "neither its base model nor" in refused.json()["detail"]
            )
