"""The service against its own OpenAPI document, with generated valid and invalid requests.

Requests are sent one by one and in sequences. Every response must be documented, match its schema, and not be a 5xx.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.core.transport import Response
from schemathesis.generation.stateful.state_machine import APIStateMachine

from service.__main__ import main
from tests.end_to_end.conftest import Served, served
from tests.end_to_end.test_service import BODY, SUPPORT, identity
from worker.ledger.api_keys import KEY_CACHE_SECONDS

# These operations have rules that no schema can express, such as one label per input, and a token for each text. They may refuse a
# body that matches the schema.
STRICTER_THAN_THE_SCHEMA = {"adapt", "add_examples", "predict", "score_adapter"}
CONFIG: dict[str, Any] = {
    "checks": {
        "negative_data_rejection": {"expected-statuses": [400, 401, 403, 404, 405, 409, 413, 422, 429]},
    },
    "phases": {"stateful": {"inference": {"algorithms": []}}},  # follow only the links that the document declares
}
GENERATED = settings(deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def described(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("contract"), {**environment, "MAX_WAIT_SECONDS": "10", "MAX_INPUTS": "4"}) as service:
        service.wait_ready()
        yield service


def schema_of(service: Served) -> Any:
    """Return the service's OpenAPI schema, changed so that requests can be generated from it.

    Security is removed, because no API keys are generated (test_tenancy.py covers them). The names of the initializations are
    added, because the document omits them and a generator would hardly ever guess one.
    """
    document = service.http.get("/openapi.json").json()
    listed = service.http.get("/initializations").json()["initializations"]
    document["components"]["schemas"]["AdaptRequest"]["properties"]["initialization"]["enum"] = [init["name"] for init in listed]
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        operation.pop("security", None)
    config = schemathesis.Config.from_dict({**CONFIG, "base-url": service.url})
    return schemathesis.openapi.from_dict(document, config=config)


def authorization(service: Served) -> dict[str, str]:
    """Return the authorization header of `service.http`. It is empty as long as the service needs no key."""
    return {name: value for name, value in service.http.headers.items() if name == "authorization"}


def audit(answers: Counter[tuple[str, int]], service: Served, least: int) -> None:
    """Assert that at least `least` requests were made, and that the service had no internal error."""
    assert sum(answers.values()) >= least, answers
    assert not {key: count for key, count in answers.items() if key[1] >= 500}
    assert "ERROR" not in service.log.read_text()
    assert service.http.get("/readyz").status_code == 200


def check_single_calls(described: Served, examples: int, least: int) -> None:
    """Call each operation by itself with generated requests, and validate the responses."""
    adapter, keys = identity(described, BODY), authorization(described)
    answers: Counter[tuple[str, int]] = Counter()
    session = requests.Session()

    def call(case: Any) -> None:
        given_id = str((case.path_parameters or {}).get("adapter_id", ""))
        if case.meta.generation.mode is GenerationMode.POSITIVE and len(given_id) % 2:
            case.path_parameters["adapter_id"] = adapter  # otherwise nearly all answers would be 404
        name = case.operation.definition.raw["operationId"]
        excluded = [schemathesis.checks.positive_data_acceptance] if name in STRICTER_THAN_THE_SCHEMA else []
        response = case.call_and_validate(session=session, headers=dict(keys), excluded_checks=excluded, timeout=30)
        answers[name, response.status_code] += 1

    for result in schema_of(described).get_all_operations():
        operation = result.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            if mode is GenerationMode.POSITIVE or operation.definition.raw.get("parameters") or operation.body:
                drawn = settings(GENERATED, max_examples=examples, derandomize=examples < 50)
                drawn(given(case=operation.as_strategy(generation_mode=mode))(call))()
        if operation.definition.raw["operationId"] == "delete_adapter":
            assert identity(described, BODY) == adapter
    session.close()
    audit(answers, described, least)
    assert {status for _, status in answers} >= {200, 204, 404, 422}


def check_linked_calls(described: Served, runs: int, least: int) -> None:
    """Make sequences of calls that use ids from earlier responses, and validate the responses."""
    answers: Counter[tuple[str, int]] = Counter()
    keys, excluded = authorization(described), [schemathesis.checks.positive_data_acceptance]
    base: type[APIStateMachine] = schema_of(described).as_state_machine()

    class Calls(base):  # type: ignore[valid-type, misc]
        def setup(self) -> None:
            """Delete all aliases and adapters, so that each run starts from an empty service."""
            for alias in described.http.get("/aliases", params={"limit": 200}).json()["aliases"]:
                described.http.delete(f"/aliases/{alias['alias']}")
            for view in described.http.get("/adapters", params={"limit": 200}).json()["adapters"]:
                assert described.http.delete(f"/adapters/{view['adapter_id']}").status_code == 204

        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            return {"headers": {**keys, "Prefer": "wait=10"}, "timeout": 30}

        def after_call(self, response: Response, case: Any) -> None:
            answers[case.operation.definition.raw["operationId"], response.status_code] += 1
            super().after_call(response, case)

        def validate_response(self, response: Response, case: Any, additional_checks: Any = None, **kwargs: Any) -> None:
            case.validate_response(response, excluded_checks=excluded, recorder=self.recorder)

    Calls.run(settings=settings(GENERATED, max_examples=runs, stateful_step_count=12, derandomize=runs < 100))
    audit(answers, described, least)


@pytest.mark.parametrize(("examples", "least"), [(5, 150), pytest.param(100, 3_000, marks=pytest.mark.long)], ids=["short", "long"])
def test_every_answer_matches_the_document(described: Served, examples: int, least: int) -> None:
    check_single_calls(described, examples, least)


@pytest.mark.parametrize(("runs", "least"), [(8, 40), pytest.param(200, 1_000, marks=pytest.mark.long)], ids=["short", "long"])
def test_answers_match_the_document_in_sequences_of_calls(described: Served, runs: int, least: int) -> None:
    check_linked_calls(described, runs, least)


def test_an_integer_may_be_written_with_a_decimal_point(described: Served) -> None:
    body = {**BODY, "options": {"steps": 3.0}, "ttl_seconds": 60.0}
    answer = httpx.post(f"{described.url}/adapt", params={"dry_run": "true"}, json=body)
    assert answer.status_code == 200 and answer.json()["steps"] == 3
    for wrong in ("3.5", '"3"', "true", "1e400", "NaN"):
        content = json.dumps({**BODY, "options": {"steps": 3}}).replace('"steps": 3', f'"steps": {wrong}')
        refused = described.http.post("/adapt", content=content, headers={"content-type": "application/json"})
        assert refused.status_code == 422 and refused.json()["errors"][0]["field"] == "options.steps", wrong


def test_more_examples_than_max_inputs_are_scored_in_parts(described: Served) -> None:
    """Score more examples than MAX_INPUTS, which is 4 in this service."""
    shown = described.http.get("/openapi.json").json()["components"]["schemas"]
    assert shown["PredictRequest"]["properties"]["inputs"]["maxItems"] == 4
    path = f"/adapters/{identity(described, BODY)}/score"
    scored = described.http.post(path, json={"examples": SUPPORT * 5}).json()
    assert scored["examples"] == 25 and scored["accuracy"] == 1.0
    examples = [*SUPPORT, {**SUPPORT[0], "label": "play"}]
    assert described.http.post(path, json={"examples": examples}).json()["mistakes"] == [5]


@pytest.mark.long
def test_every_answer_matches_the_document_with_keys(described: Served) -> None:
    """Repeat the checks with an API key. Keep this test last: once a key exists, every call needs one."""
    command = ["keys", "--data-dir", str(described.log.parent / "data"), "create", "--scope", "admin", "--json"]
    made = CliRunner().invoke(main, command)
    assert made.exit_code == 0, made.output
    described.http.headers["authorization"] = f"Bearer {json.loads(made.stdout)['key']}"
    time.sleep(KEY_CACHE_SECONDS + 0.1)
    assert httpx.get(f"{described.url}/adapters").status_code == 401
    check_single_calls(described, 60, 1_500)
    check_linked_calls(described, 100, 500)
