"""The HTTP contract of the embedded service: adapting, predicting, options, limits, metrics and logs."""

import json
import time
from collections import Counter
from typing import Any

import httpx
import pytest
import redis

from service.running.standalone import url_of
from tests.end_to_end.conftest import Served
from tests.servers import until
from tests.tiny import WORDS as TINY_WORDS
from worker.ledger.messages import JOB_FORMATS

SUPPORT = [
    {"input": "close my account", "label": "close"},
    {"input": "please close account", "label": "close"},
    {"input": "order pizza", "label": "order"},
    {"input": "order pizza now please", "label": "order"},
    {"input": "play a song", "label": "play"},
]
BODY = {"support": SUPPORT, "initialization": "lora-from-zero"}
WARNINGS = [{"field": "support", "message": "label 'play' has one example"}]
"""The warnings about SUPPORT."""


def adapt(service: Served, body: dict[str, Any] | None = None, wait: int = 30) -> httpx.Response:
    """Request an adapter and return the response. The service waits up to `wait` seconds for the adapter."""
    return service.http.post("/adapt", json=body or BODY, headers={"Prefer": f"wait={wait}"})


def identity(service: Served, body: dict[str, Any]) -> str:
    """Create an adapter, wait until it is ready, and return its id."""
    answer = adapt(service, body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["adapter_id"])


def predict(service: Served, adapter: str, inputs: list[str]) -> httpx.Response:
    return service.http.post("/predict", json={"adapter_id": adapter, "inputs": inputs})


def test_adapt_predict_delete(service: Served) -> None:
    body = {**BODY, "options": {"seed": 101}}
    answer = adapt(service, body)
    assert answer.status_code == 200
    adapter = answer.json()["adapter_id"]
    assert answer.headers["Location"] == f"/adapters/{adapter}"
    assert answer.json() == {"adapter_id": adapter, "status": "ready", "truncated": [], "warnings": WARNINGS}
    predictions = predict(service, adapter, [example["input"] for example in SUPPORT]).json()
    assert [p["label"] for p in predictions["predictions"]] == [example["label"] for example in SUPPORT]
    for row in predictions["predictions"]:
        assert set(row["probabilities"]) == {"close", "order", "play"}
        assert sum(row["probabilities"].values()) == pytest.approx(1)
        assert row["probabilities"][row["label"]] == max(row["probabilities"].values())
    state = service.http.get(f"/adapters/{adapter}").json()
    assert state["status"] == "ready" and state["digest"] == predictions["digest"]
    assert len(state["support_loss"]) == state["steps"] == 10
    assert state["labels"] == ["close", "order", "play"] and state["attempt"] == 1
    assert service.http.delete(f"/adapters/{adapter}").status_code == 204
    for response in (
        service.http.get(f"/adapters/{adapter}"),
        service.http.delete(f"/adapters/{adapter}"),
        predict(service, adapter, ["order"]),
    ):
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"
    assert adapter not in service.http.get("/adapters").text


def test_label_words_decide_for_themselves_and_say_why(service: Served) -> None:
    """Post examples whose labels describe them, and the same examples with the labels exchanged."""
    rows = [
        ("order pizza", "order"),
        ("please close account", "close account"),
        ("order pizza now", "order"),
        ("close my account", "close account"),
    ]
    other = {"order": "close account", "close account": "order"}
    for support, used in ((rows, True), ([(text, other[label]) for text, label in rows], False)):
        body = {"support": [{"input": text, "label": label} for text, label in support], "initialization": "contrastive"}
        plain = {**body, "options": {"label_words": used}}
        adapter, explicit = identity(service, body), identity(service, plain)
        state, other_state = (service.http.get(f"/adapters/{which}").json() for which in (adapter, explicit))
        assert adapter != explicit and identity(service, {**body, "options": {"label_words": "auto"}}) == adapter
        assert (state["label_words"], state["label_words_used"], other_state["label_words"]) == ("auto", used, used)
        assert (state["label_words_gain"] > 0.05) is used and state["steps"] == other_state["steps"]
        answers = [
            predict(service, which, ["order a pizza"]).json()["predictions"][0]["probabilities"] for which in (adapter, explicit)
        ]
        assert answers[0] == pytest.approx(answers[1], abs=1e-3)


def test_the_number_of_steps_follows_the_shots(service: Served) -> None:
    body = {**BODY, "initialization": "contrastive", "options": {"label_words": False}}
    single = {**body, "support": [SUPPORT[0], SUPPORT[2], SUPPORT[4]]}
    several = {**body, "support": [*SUPPORT, {"input": "play music", "label": "play"}]}
    named = {**single, "options": {"label_words": True}}
    for request, steps in ((single, 0), (body, 0), (several, 3), (named, 3)):
        adapter = identity(service, request)
        state = service.http.get(f"/adapters/{adapter}").json()
        assert len(state["support_loss"]) == state["steps"] == steps
        assert state["label_words"] == (request is named) and state["examples"] == len(request["support"])
        assert state["label_words_used"] is state["label_words"] and state["label_words_gain"] is None
        [answer] = predict(service, adapter, ["order pizza"]).json()["predictions"]
        assert sum(answer["probabilities"].values()) == pytest.approx(1) and set(answer["probabilities"]) == {
            "close",
            "order",
            "play",
        }
    refused = adapt(service, {**single, "options": {"steps": 2, "label_words": False}})
    assert refused.status_code == 422
    expected = "0 for one example of each label with initialization 'contrastive', or label_words: true with it"
    detail = f"options.steps: expected {expected}, got 2"
    assert refused.json()["detail"] == detail
    in_parts = [
        {"input": f"{word} pizza", "label": word} for word in TINY_WORDS.split()[:9]
    ]  # `parts` allows eight rows in one part
    adapter = identity(service, {"support": in_parts, "initialization": "parts", "options": {"steps": 2}})
    assert service.http.get(f"/adapters/{adapter}").json()["steps"] == 2
    refused = adapt(service, {"support": in_parts[:8], "initialization": "parts", "options": {"steps": 2}})
    assert refused.json()["detail"] == detail.replace("contrastive", "parts")
    listed = service.http.get("/initializations").json()["initializations"]
    view = next(view for view in listed if view["name"] == "contrastive")
    assert view["objective"] == {"supervised_contrastive": 1.0} and view["steps_by_shots"] == {"1": 0, "2": 3}


def test_a_hard_support_set_takes_more_steps(service: Served) -> None:
    easy = [(f"{verb} {thing}", verb) for verb in ("close", "order") for thing in ("account", "card", "pizza")]
    hard = [(text, "close" if i % 2 else "order") for i, (text, _) in enumerate(easy)]
    for pairs, steps in ((easy, 3), (hard, 7)):
        body = {"support": [{"input": t, "label": c} for t, c in pairs], "initialization": "asking"}
        states = [
            service.http.get(f"/adapters/{identity(service, request)}").json()
            for request in (body, {**body, "options": {"steps": steps}}, {**body, "options": {"steps": 2}})
        ]
        assert [len(state["support_loss"]) for state in states] == [state["steps"] for state in states] == [steps, steps, 2]
        assert states[0]["digest"] == states[1]["digest"] != states[2]["digest"]
    listed = service.http.get("/initializations").json()["initializations"]
    assert {view["name"]: view["hard_steps"] for view in listed}["asking"] == {"shots": 3, "below": 0.5, "steps": 7}


def test_a_support_set_in_parts_takes_all_steps_for_each_part_with_the_objective_of_parts(service: Served) -> None:
    pairs = [
        (f"{verb} {thing}", verb) for verb in ("close", "order") for thing in ("account", "card", "pizza", "book", "money", "it")
    ]
    bodies = {
        steps: {"support": [{"input": t, "label": c} for t, c in pairs[:rows]], "initialization": "parts"}
        for steps, rows in ((3, 8), (6, 12))
    }
    for steps, body in bodies.items():
        state = service.http.get(f"/adapters/{identity(service, body)}").json()
        assert state["steps"] == len(state["support_loss"]) == steps
        contrastive = {**body, "initialization": "contrastive", "options": {"steps": steps}}
        other = service.http.get(f"/adapters/{identity(service, contrastive)}").json()
        same = state["support_loss"][0] == pytest.approx(other["support_loss"][0], rel=1e-4)
        assert same == (steps == 3)  # eight rows fit into one part and use the usual objective
    view = next(v for v in service.http.get("/initializations").json()["initializations"] if v["name"] == "parts")
    assert view["in_parts"] == {"more_than": 8, "objective": {"cross_entropy": 1.0}, "most": 5}


def test_a_pinned_adapter_keeps_its_weights(service: Served) -> None:
    body = {**BODY, "options": {"seed": 55}, "ttl_seconds": 2}
    adapter = identity(service, body)
    assert service.http.put(f"/adapters/{adapter}/pin").status_code == 204
    state = service.http.get(f"/adapters/{adapter}").json()
    assert state["pinned"] and state["expires_at"] is None
    assert identity(service, body) == adapter  # the same request again leaves it pinned
    time.sleep(2.2)
    assert service.http.get(f"/adapters/{adapter}").json()["status"] == "ready"
    assert predict(service, adapter, ["order pizza"]).status_code == 200
    assert service.http.delete(f"/adapters/{adapter}/pin").status_code == 204
    time.sleep(2.2)
    assert service.http.get(f"/adapters/{adapter}").json()["status"] == "expired"
    assert predict(service, adapter, ["order pizza"]).status_code == 409
    for method in ("PUT", "DELETE"):
        assert service.http.request(method, "/adapters/a0/pin").status_code == 404


def metric(service: Served, name: str) -> float:
    """Return the sum of the samples in /metrics whose line begins with `name`."""
    lines = service.http.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def test_metrics_count_jobs_requests_and_stages(service: Served) -> None:
    before = metric(service, "quickstudy_jobs_accepted_total"), metric(service, 'quickstudy_jobs_ended_total{outcome="ready"}')
    adapter = identity(service, {**BODY, "options": {"seed": 77}})
    predict(service, adapter, ["order"])
    until(lambda: metric(service, 'quickstudy_adapt_stage_seconds_count{stage="inner_step"}') >= 10)  # written once a second
    answer = service.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    after = metric(service, "quickstudy_jobs_accepted_total"), metric(service, 'quickstudy_jobs_ended_total{outcome="ready"}')
    assert after == (before[0] + 1, before[1] + 1)
    assert metric(service, "quickstudy_records_up") == 1 and metric(service, "quickstudy_workers") == len(JOB_FORMATS)
    assert metric(service, "quickstudy_jobs{queue=") == metric(service, "quickstudy_oldest_waiting_job_seconds{") == 0
    waits = [line for line in answer.text.splitlines() if line.startswith("quickstudy_estimated_wait_seconds{")]
    assert len(waits) == len(JOB_FORMATS) and 'queue="quickstudy.base-' in waits[0]  # a job was measured, and the worker is alive
    assert metric(service, 'quickstudy_http_requests_total{method="POST",route="/predict",status="200"}') >= 1
    for stage, least in (("inner_step", 10), ("inner_loop", 1), ("queue", 1), ("store", 1)):
        assert metric(service, f'quickstudy_adapt_stage_seconds_count{{stage="{stage}"}}') >= least
    assert adapter not in answer.text  # metrics with adapter ids as labels would grow without limit


def test_between_post_and_ready_only_the_steps_of_the_job_write(service: Served) -> None:
    """Read every command that the embedded server gets, and look at those that name the adapter.

    Commands within scripts do not count. Each other write would cost a disk write: the wake-up, its acknowledgement, the weights.
    """
    client = redis.Redis.from_url(str(url_of(service.log.parent / "data")))
    with client.monitor() as monitor:  # type: ignore[no-untyped-call]
        adapter = identity(service, {**BODY, "options": {"seed": 82}})
        client.echo("end")
        commands: list[str] = []
        while not commands or not commands[-1].startswith("ECHO"):
            sent = monitor.next_command()
            commands += [] if sent["client_type"] == "lua" else [sent["command"]]
    client.close()
    names = Counter(command.split()[0] for command in commands if adapter in command)
    assert names.keys() == {"EVALSHA", "HMGET"}, names


def test_the_request_id_is_in_the_answer_and_in_the_log_but_no_input_is(service: Served) -> None:
    marked = {**BODY, "options": {"seed": 78}}
    answer = service.http.post("/adapt", json=marked, headers={"X-Request-ID": "my-request.7", "Prefer": "wait=30"})
    assert answer.headers["X-Request-ID"] == "my-request.7"
    for odd in ("", "two words", "x" * 65, 'a"b'):
        given = service.http.get("/healthz", headers={"X-Request-ID": odd}).headers["X-Request-ID"]
        assert given != odd and len(given) == 16
    mark = f"adapter={answer.json()['adapter_id']}"
    # The worker logs its line after the answer.
    until(lambda: any(" worker ready " in line and mark in line for line in service.log.read_text().splitlines()))
    log = service.log.read_text()
    lines = [line for line in log.splitlines() if "request=my-request.7" in line]
    assert any(" service answered " in line and "status=200" in line for line in lines)
    assert any(
        " worker ready " in line and f"adapter={answer.json()['adapter_id']}" in line and "attempt=1" in line for line in lines
    )
    assert not any(example["input"] in log for example in SUPPORT)
    service.http.get("/adapters/%0A2026 ERROR worker a line of its own")
    service.http.request("BREW", "/healthz")
    assert not any(line.startswith("2026 ERROR") for line in service.log.read_text().splitlines())
    assert 'method="other"' in service.http.get("/metrics").text and "BREW" not in service.http.get("/metrics").text


def test_the_same_request_in_another_order_or_with_another_ttl_is_the_same_adapter(service: Served) -> None:
    first = identity(service, BODY)
    assert identity(service, {**BODY, "support": SUPPORT[::-1], "ttl_seconds": 500}) == first
    state = service.http.get(f"/adapters/{first}").json()
    assert state["attempt"] == 1
    assert 490 < state["expires_at"] - state["created_at"] < 600
    spaced = [{**SUPPORT[0], "input": "close my  account"}, *SUPPORT[1:]]
    assert identity(service, {**BODY, "support": spaced}) != first
    assert identity(service, {**BODY, "options": {"steps": 10}}) == first  # the default number of steps, given explicitly
    assert identity(service, {**BODY, "options": {"steps": 9}}) != first


def test_an_adapter_recomputed_after_deletion_has_the_same_digest(service: Served) -> None:
    body = {**BODY, "options": {"seed": 7}}
    adapter = identity(service, body)
    digest = service.http.get(f"/adapters/{adapter}").json()["digest"]
    service.http.delete(f"/adapters/{adapter}")
    assert identity(service, body) == adapter
    assert service.http.get(f"/adapters/{adapter}").json()["digest"] == digest


def test_rows_of_many_adapters_in_shared_batches_get_their_own_labels(service: Served) -> None:
    """Send concurrent requests to adapters with different labels, so that one batch serves several."""
    from concurrent.futures import ThreadPoolExecutor

    # Each adapter pairs texts and labels differently, so that an answer with another adapter's weights is detected.
    adapters, expected = {}, {}
    for n in range(6):
        rotated = SUPPORT[n % 5 :] + SUPPORT[: n % 5]
        expected[n] = [f"{e['label']} {n}" for e in rotated]
        support = [{"input": e["input"], "label": label} for e, label in zip(SUPPORT, expected[n], strict=True)]
        adapters[n] = identity(service, {**BODY, "support": support, "options": {"steps": 40}})

    def ask(number: int) -> list[str]:
        n = number % 6
        rows = predict(service, adapters[n], [e["input"] for e in SUPPORT]).json()["predictions"]
        return [row["label"] for row in rows]

    with ThreadPoolExecutor(8) as pool:
        for number, labels in enumerate(pool.map(ask, range(48))):
            assert labels == expected[number % 6]


def test_without_prefer_the_answer_is_immediate(service: Served) -> None:
    body = {**BODY, "options": {"seed": 55, "steps": 30}}
    worker = service.worker()
    worker.suspend()  # the job cannot end before the prediction
    try:
        answer = service.http.post("/adapt", json=body)
        assert answer.status_code == 202 and answer.json()["status"] == "queued"
        adapter = answer.json()["adapter_id"]
        early = predict(service, adapter, ["order"])
        assert early.status_code == 409 and early.json()["adapter_status"] == "queued"
    finally:
        worker.resume()
    assert identity(service, body) == adapter


def test_pages_list_every_adapter_once(service: Served) -> None:
    made = {identity(service, {**BODY, "options": {"seed": seed}}) for seed in (201, 202, 203)}
    seen: list[str] = []
    cursor: str | None = None
    for _ in range(50):
        page = service.http.get("/adapters", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        seen += [adapter["adapter_id"] for adapter in page["adapters"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert made <= set(seen) and len(seen) == len(set(seen))


def test_truncation_is_reported(service: Served) -> None:
    support = [{"input": "pizza " * 100, "label": "order"}, *SUPPORT]
    answer = adapt(service, {**BODY, "support": support}).json()
    assert answer["truncated"] == [0]
    assert predict(service, answer["adapter_id"], ["order", "song " * 100]).json()["truncated"] == [1]


def test_initializations_health_and_docs(service: Served) -> None:
    names = [init["name"] for init in service.http.get("/initializations").json()["initializations"]]
    assert names == ["asking", "contrastive", "frozen-prototypes", "lora-from-zero", "parts"]
    assert service.http.get("/healthz").json() == {"status": "alive"}
    assert service.http.get("/readyz").json() == {"status": "ready", "missing": [], "initializations_missing": []}
    assert "/adapt" in service.http.get("/openapi.json").json()["paths"]
    assert service.http.get("/docs").status_code == 200


WORDS: dict[str, Any] = {"options": {"label_words": True}}


def examples(**changes: Any) -> list[dict[str, Any]]:
    return [{**SUPPORT[0], **changes}, *SUPPORT[1:]]


@pytest.mark.parametrize(
    ("body", "field", "expected"),
    [
        ({"support": []}, "support", "2 to 50 examples"),
        ({"support": SUPPORT[:1]}, "support", "2 to 50 examples"),
        ({"support": SUPPORT[:2]}, "support", "2 to 200 different labels"),
        ({"support": [{"input": f"text {i}", "label": str(i % 3)} for i in range(51)]}, "support", "2 to 50 examples"),
        ({"support": examples(input="  ")}, "support[0].input", "a text that is not empty"),
        ({"support": examples(input="a" * 10_001)}, "support[0].input", "at most 10000 characters"),
        ({"support": examples(input="\x00")}, "support[0].input", "Unicode text without NUL"),
        ({"support": examples(input="\ud800")}, "support[0].input", "Unicode text without lone surrogates"),
        ({"support": examples(label="")}, "support[0].label", "a text that is not empty"),
        ({"support": examples(label="a" * 201)}, "support[0].label", "at most 200 characters"),
        ({"support": examples(label=["a", "b"])}, "support[0].label", "a valid string"),
        ({"support": [*SUPPORT, {"input": "order pizza", "label": "play"}]}, "support[5].label", "'order' as in support[2]"),
        ({"support": [{"input": "a"}, *SUPPORT]}, "support[0].label", "a value"),
        ({"support": examples(weight=1)}, "support[0].weight", "no such field"),
        ({"support": "text"}, "support", "a valid list"),
        ({"initialization": "nope"}, "initialization", "one of asking, contrastive, frozen-prototypes, lora-from-zero"),
        ({"options": {"step": 3}}, "options.step", "no such field"),
        ({"options": {"steps": -1}}, "options.steps", "greater than or equal to 0"),
        ({"options": {"steps": "3"}}, "options.steps", "a valid integer"),
        ({"options": {"seed": 2**31}}, "options.seed", "less than 2147483648"),
        ({"options": {"label_words": 1}}, "options.label_words", "true, false or 'auto'"),
        ({"options": {"label_words": "yes"}}, "options.label_words", "true, false or 'auto'"),
        (
            {"support": [*SUPPORT, {"input": "stop it", "label": "Close"}, {"input": "no", "label": "-Close"}], **WORDS},
            "options.label_words",
            "labels of different words, not '-Close' and 'Close'",
        ),
        (
            {"support": [*SUPPORT, {"input": "order", "label": "play"}], **WORDS},
            "options.label_words",
            "no label with the words of another's example, as 'order' has of support[5]",
        ),
        ({"ttl_seconds": 0}, "ttl_seconds", "greater than or equal to 1"),
        ({"ttl_seconds": 10**9}, "ttl_seconds", "at most 7776000"),
        ({"surprise": 1}, "surprise", "no such field"),
    ],
)
def test_bad_adapt_requests_name_the_field(service: Served, body: dict[str, Any], field: str, expected: str) -> None:
    content = json.dumps({**BODY, **body}).encode()
    response = service.http.post("/adapt", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == 422
    assert problem["errors"][0]["field"] == field
    assert problem["errors"][0]["expected"].startswith(expected)
    assert len(problem["errors"][0]["got"]) <= 80


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"adapter_id": "a", "inputs": []}, "inputs"),
        ({"adapter_id": "a", "inputs": ["fine", " "]}, "inputs[1]"),
        ({"adapter_id": "a", "inputs": ["x"] * 257}, "inputs"),
        ({"adapter_id": "a", "inputs": [3]}, "inputs[0]"),
        ({"inputs": ["x"]}, "adapter_id"),
        ({"adapter_id": "\ud800", "inputs": ["x"]}, "adapter_id"),
        ({"adapter_id": "a" * 65, "inputs": ["x"]}, "adapter_id"),
        ({"adapter_id": "../a", "inputs": ["x"]}, "adapter_id"),
    ],
)
def test_bad_predict_requests_name_the_field(service: Served, body: dict[str, Any], field: str) -> None:
    content = json.dumps(body).encode()  # httpx's own encoder rejects lone surrogates, but other clients send them
    response = service.http.post("/predict", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 422 and response.json()["errors"][0]["field"] == field


def test_bodies_that_are_not_json_or_too_large_are_refused(service: Served) -> None:
    response = service.http.post("/adapt", content=b"{nope", headers={"content-type": "application/json"})
    assert response.status_code == 422 and response.json()["errors"][0]["field"] == "body"
    assert "at character" in response.json()["errors"][0]["got"]
    response = service.http.post("/adapt", content=json.dumps(BODY).encode())
    assert response.status_code == 422 and response.json()["errors"][0]["field"] == "Content-Type"
    large = json.dumps({**BODY, "surprise": "x" * 100_000}).encode()
    headers = {"content-type": "application/json"}
    response = service.http.post("/adapt", content=large, headers=headers)
    assert response.status_code == 413 and "at most 100000 bytes" in response.json()["detail"]
    response = service.http.post(
        "/adapt", content=iter([large[:50_000], large[50_000:], b" "]), headers=headers
    )  # without Content-Length
    assert response.status_code == 413
    response = adapt(service, wait=-1)
    assert response.status_code == 422 and response.json()["errors"][0]["field"] == "Prefer"
    response = service.http.get("/nowhere")
    assert response.status_code == 404 and response.headers["content-type"] == "application/problem+json"
    response = service.http.get("/adapters", params={"cursor": "zzz"})
    assert response.status_code == 422 and response.json()["errors"][0]["field"] == "cursor"


def test_no_example_is_in_the_log(service: Served) -> None:
    identity(service, {**BODY, "options": {"seed": 77}})
    log = service.log.read_text()
    assert "pizza" not in log and "ready" in log
