"""A task kind from an installed package, served over HTTP side by side with the built-in kind."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.end_to_end.conftest import ROOT, Served, served
from tests.end_to_end.test_service import BODY
from tests.end_to_end.test_service import SUPPORT as LABELLED

PLUGIN = ROOT / "tests" / "plugins" / "number_from_text"
SUPPORT = [{"input": "pizza " * n, "value": float(n)} for n in (1, 2, 3, 4, 6, 8)]


@pytest.fixture(scope="module")
def service(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run a service and a worker whose import path contains the installed plugin package."""
    folder, installed = tmp_path_factory.mktemp("plugin"), tmp_path_factory.mktemp("installed")
    copy = folder / "number_from_text"
    copy.mkdir()
    for name in ("pyproject.toml", "number_from_text.py"):
        (copy / name).write_text((PLUGIN / name).read_text())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", str(installed), str(copy)], check=True, capture_output=True)
    path = os.pathsep.join([str(installed), str(ROOT), str(ROOT / "client")])
    with served(folder, {**environment, "PYTHONPATH": path}) as running:
        running.wait_ready()
        yield running


def test_the_new_kind_adapts_and_predicts(service: Served) -> None:
    wait = {"Prefer": "wait=60"}
    made = service.http.post("/adapt", json={"support": SUPPORT}, headers=wait)
    assert made.status_code == 200, made.text
    identity = made.json()["adapter_id"]
    view = service.http.get(f"/adapters/{identity}").json()
    assert (view["kind"], view["initialization"], view["labels"], view["steps"]) == ("number-from-text", "number-from-zero", [], 3)
    assert view["support_loss"] == sorted(view["support_loss"], reverse=True)
    answer = service.http.post("/predict", json={"adapter_id": identity, "inputs": ["pizza", "pizza " * 8]}).json()
    few, many = (prediction["value"] for prediction in answer["predictions"])
    assert few < 4 < many
    assert service.http.post("/adapt", json={"support": SUPPORT}, headers=wait).json()["adapter_id"] == identity
    more = service.http.post(f"/adapters/{identity}/examples", json={"support": [{"input": "pizza", "value": 1.5}]}, headers=wait)
    assert more.status_code == 200 and more.json()["adapter_id"] != identity
    refused = service.http.post(f"/adapters/{identity}/score", json={"examples": BODY["support"]})
    assert refused.status_code == 422 and "an adapter of kind text-classification" in refused.json()["detail"]


def test_an_invalid_example_is_refused_with_its_field(service: Served) -> None:
    for support, message in (
        ([*SUPPORT, {"input": "pizza", "value": "many"}], "support[6].value: expected a valid number"),
        ([*SUPPORT, {"input": " ", "value": 1}], "support[6].input: expected a text that is not empty"),
        ([*SUPPORT, {"input": "pizza", "label": "one"}], "support[6]: expected an example of number-from-text, as support[0] is"),
        ([{"input": "pizza"}] * 2, "support[0].label: expected a value"),
    ):
        answer = service.http.post("/adapt", json={"support": support})
        assert answer.status_code == 422 and answer.json()["detail"].startswith(message), answer.text


def test_adapters_of_both_kinds_answer_side_by_side(service: Served) -> None:
    wait = {"Prefer": "wait=60"}
    number = service.http.post("/adapt", json={"support": SUPPORT}, headers=wait).json()["adapter_id"]
    labels = service.http.post("/adapt", json=BODY, headers=wait).json()["adapter_id"]
    number_request = {"adapter_id": number, "inputs": ["pizza " * 3]}
    label_request = {"adapter_id": labels, "inputs": [LABELLED[0]["input"]]}
    for _ in range(5):
        assert "value" in service.http.post("/predict", json=number_request).json()["predictions"][0]
        prediction = service.http.post("/predict", json=label_request).json()["predictions"][0]
        assert prediction["label"] == LABELLED[0]["label"]
    wrong = service.http.post("/adapt", json={"support": SUPPORT, "initialization": BODY["initialization"]})
    assert wrong.status_code == 422 and wrong.json()["detail"] == (
        f"initialization: expected one of number-from-zero, got {BODY['initialization']!r}"
    )


def test_the_openapi_document_has_the_examples_of_both_kinds(service: Served) -> None:
    schemas = service.http.get("/openapi.json").json()["components"]["schemas"]
    items = schemas["AdaptRequest"]["properties"]["support"]["items"]
    assert len(items["oneOf"]) == 2, items
