"""The HTTP API apart from adapting and predicting.

These tests cover error documents, names and tags, aliases, dry runs, idempotency keys, adding examples, scores, events and the
OpenAPI document.
"""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.end_to_end.conftest import Served
from tests.end_to_end.test_service import BODY, SUPPORT, adapt, identity, predict


@pytest.fixture(scope="module")
def adapter(service: Served) -> str:
    return identity(service, {**BODY, "name": "first", "tags": ["x", "y"]})


def test_every_problem_has_its_type_and_request_id(service: Served, adapter: str) -> None:
    json_body = {"content-type": "application/json"}
    for method, path, content, status, kind in (
        ("GET", "/nowhere", b"", 404, "unknown-path"),
        ("GET", "/adapters/", b"", 404, "unknown-path"),
        ("GET", "/adapters/a0", b"", 404, "unknown-adapter"),
        ("GET", "/aliases/nothing", b"", 404, "unknown-alias"),
        ("TRACE", "/adapt", b"", 405, "method-not-allowed"),
        ("PUT", f"/adapters/{adapter}", b"", 405, "method-not-allowed"),
        ("GET", "/adapters?limit=0", b"", 422, "invalid-request"),
        ("POST", "/adapt", b"{nope", 422, "invalid-request"),
        ("POST", "/adapt", b"\xff\xfe", 422, "invalid-request"),
        ("POST", "/adapt", b"[" * 90_000, 422, "invalid-request"),
        ("POST", "/adapt", b'{"support": ' + b"1" * 5000 + b"}", 422, "invalid-request"),
        ("POST", "/adapt", b'{"support": [], "\\ud800": 1, "' + b"x" * 5000 + b'": 2}', 422, "invalid-request"),
        ("POST", "/adapt", b'{"x": "' + b"x" * 100_000 + b'"}', 413, "body-too-large"),
    ):
        answer = service.http.request(method, path, content=content, headers={**json_body, "X-Request-ID": "asked-7"})
        assert answer.status_code == status, (method, path, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["type"] == f"/problems/{kind}" and problem["status"] == status and problem["title"] and problem["detail"]
        assert problem["request_id"] == answer.headers["X-Request-ID"] == "asked-7"
        if status == 405:
            assert answer.headers["Allow"] == ("POST" if path == "/adapt" else "DELETE, GET, PATCH")


def test_names_and_tags_can_change_and_are_no_part_of_the_id(service: Served, adapter: str) -> None:
    assert identity(service, BODY) == adapter  # a request without name and tags finds the same adapter and keeps its name and tags
    view = service.http.get(f"/adapters/{adapter}").json()
    assert (view["name"], view["tags"], view["parent"]) == ("first", ["x", "y"], None)
    assert identity(service, {**BODY, "tags": ["x", "z"]}) == adapter
    changed = service.http.patch(f"/adapters/{adapter}", json={"name": "second"})
    assert changed.status_code == 200 and (changed.json()["name"], changed.json()["tags"]) == ("second", ["x", "z"])
    assert service.http.patch(f"/adapters/{adapter}", json={"name": None, "tags": []}).json() == {
        **view,
        "name": None,
        "tags": [],
        "expires_at": pytest.approx(view["expires_at"], abs=60),
    }
    service.http.patch(f"/adapters/{adapter}", json={"name": "first", "tags": ["x", "y"]})
    assert service.http.patch(f"/adapters/{adapter}", json={}).json()["name"] == "first"
    assert service.http.patch("/adapters/a0", json={"name": "x"}).status_code == 404
    for wrong, field in (
        ({"name": "x" * 101}, "name"),
        ({"name": " "}, "name"),
        ({"tags": ["x"] * 17}, "tags"),
        ({"tags": ["x" * 65]}, "tags[0]"),
        ({"tags": ["x", "\x00"]}, "tags[1]"),
        ({"tags": None}, "tags"),
        ({"pinned": True}, "pinned"),
    ):
        refused = service.http.patch(f"/adapters/{adapter}", json=wrong)
        assert refused.status_code == 422 and refused.json()["errors"][0]["field"] == field


def listed(service: Served, **query: str) -> list[str]:
    """Return the ids of all adapters that match the query, from every page of the list."""
    ids: list[str] = []
    cursor = None
    while True:
        page = service.http.get("/adapters", params={**query, **({"cursor": cursor} if cursor else {})}).json()
        ids += [view["adapter_id"] for view in page["adapters"]]
        cursor = page["next_cursor"]
        if cursor is None:
            return ids


def test_adapters_are_found_by_status_tag_and_name(service: Served, adapter: str) -> None:
    others = [identity(service, {**BODY, "options": {"seed": 300 + i}, "tags": ["x"], "name": f"n{i}"}) for i in range(3)]
    for limit in ("1", "2", "200"):
        assert listed(service, tag="x", limit=limit) == [*others[::-1], adapter]
        assert listed(service, tag="x", name="n1", limit=limit) == [others[1]]
        assert listed(service, tag="y", status="ready", limit=limit) == [adapter]
        assert listed(service, tag="y", status="failed", limit=limit) == []
    assert service.http.get("/adapters", params={"status": "nonsense"}).status_code == 422


def test_an_alias_moves_at_once_and_only_from_the_expected_adapter(service: Served, adapter: str) -> None:
    other = identity(service, {**BODY, "options": {"seed": 5}})
    put = service.http.put("/aliases/live", json={"adapter_id": adapter})
    assert put.json() == {"alias": "live", "adapter_id": adapter, "previous": None}
    answer = predict(service, "live", ["order pizza"]).json()
    assert answer["adapter_id"] == adapter and answer["alias"] == "live"
    assert predict(service, adapter, ["order pizza"]).json()["alias"] is None
    moved = service.http.put("/aliases/live", json={"adapter_id": other, "expected": other})
    assert moved.status_code == 409 and moved.json()["type"] == "/problems/alias-moved"
    assert moved.json()["alias_points_at"] == adapter
    assert service.http.put("/aliases/live", json={"adapter_id": other, "expected": None}).status_code == 409
    assert service.http.put("/aliases/live", json={"adapter_id": other, "expected": adapter}).json()["previous"] == adapter
    assert predict(service, "live", ["order pizza"]).json()["adapter_id"] == other
    view = service.http.get("/aliases/live").json()
    assert view["adapter_id"] == other and time.time() - view["updated_at"] < 60
    assert [entry["adapter_id"] for entry in view["history"]] == [adapter]
    listed = {name: value for name, value in view.items() if name != "history"}
    assert service.http.get("/aliases").json() == {"aliases": [listed], "next_cursor": None}
    back = service.http.post("/aliases/live/rollback")
    assert back.json() == {"alias": "live", "adapter_id": adapter, "previous": other}
    assert predict(service, "live", ["order pizza"]).json()["adapter_id"] == adapter
    again = service.http.post("/aliases/live/rollback")
    assert again.status_code == 409 and again.json()["type"] == "/problems/alias-without-history"
    assert service.http.post("/aliases/nothing/rollback").status_code == 404
    service.http.put("/aliases/live", json={"adapter_id": other})
    refused = service.http.delete(f"/adapters/{other}")
    assert refused.status_code == 409 and refused.json()["aliases"] == ["live"] and "live" in refused.json()["detail"]
    assert predict(service, other, ["order"]).status_code == 200  # the refused deletion removed nothing
    assert service.http.delete("/aliases/live").status_code == 204
    assert service.http.delete("/aliases/live").status_code == service.http.get("/aliases/live").status_code == 404
    assert predict(service, "live", ["order"]).json()["type"] == "/problems/unknown-adapter"
    assert service.http.delete(f"/adapters/{other}").status_code == 204
    unknown = service.http.put("/aliases/live", json={"adapter_id": other})
    assert unknown.status_code == 404 and unknown.json()["type"] == "/problems/unknown-adapter"
    for name in (adapter, "Live", "-x", "x" * 64):
        assert service.http.put(f"/aliases/{name}", json={"adapter_id": adapter}).status_code == 422


def test_predictions_succeed_while_an_alias_moves(service: Served, adapter: str) -> None:
    other = identity(service, {**BODY, "options": {"seed": 6}})
    service.http.put("/aliases/moving", json={"adapter_id": adapter})
    stop, answers = threading.Event(), list[tuple[int, str]]()

    def ask() -> None:
        with httpx.Client(base_url=service.url) as http:
            while not stop.is_set():
                answer = http.post("/predict", json={"adapter_id": "moving", "inputs": ["order pizza"]})
                answers.append((answer.status_code, answer.json().get("adapter_id", "")))

    thread = threading.Thread(target=ask)
    thread.start()
    for i in range(40):
        service.http.put("/aliases/moving", json={"adapter_id": (other, adapter)[i % 2]})
    stop.set()
    thread.join()
    assert {status for status, _ in answers} == {200} and {found for _, found in answers} == {adapter, other}
    service.http.delete("/aliases/moving")


def test_top_k_is_the_most_probable_labels_in_order(service: Served, adapter: str) -> None:
    full = predict(service, adapter, ["order pizza", "play a song"]).json()["predictions"]
    for k in (1, 2, 3, 50):
        body = {"adapter_id": adapter, "inputs": ["order pizza", "play a song"], "top_k": k}
        rows = service.http.post("/predict", json=body).json()["predictions"]
        for row, all_labels in zip(rows, full, strict=True):
            ranked = sorted(all_labels["probabilities"].items(), key=lambda item: -item[1])[:k]
            assert list(row["probabilities"].items()) == [(label, pytest.approx(p, abs=1e-5)) for label, p in ranked]
            assert row["label"] == all_labels["label"] == ranked[0][0]
    assert service.http.post("/predict", json={"adapter_id": adapter, "inputs": ["x"], "top_k": 0}).status_code == 422


def test_a_dry_run_reports_the_effect_and_writes_nothing(service: Served, adapter: str) -> None:
    again = service.http.post("/adapt", params={"dry_run": "true"}, json=BODY)
    assert again.status_code == 200 and again.json()["adapter_id"] == adapter and again.json()["status"] == "ready"
    assert again.json()["labels"] == {"close": 2, "order": 2, "play": 1} and again.json()["steps"] == 10
    assert again.json()["warnings"] == [{"field": "support", "message": "label 'play' has one example"}]
    before = service.http.get("/adapters", params={"limit": 200}).json()
    words = ("a", "my", "the", "late", "early", "today", "please", "now")
    support = [*SUPPORT, SUPPORT[2], *({"input": f"order {word} pizza", "label": "order"} for word in words)]
    support += [{"input": "pizza " * 100, "label": "order"}]
    foreseen = service.http.post("/adapt", params={"dry_run": "true"}, json={**BODY, "support": support}).json()
    assert foreseen["status"] == "new" and foreseen["examples"] == 15 and foreseen["truncated"] == [14]
    fields = {warned["field"]: warned["message"] for warned in foreseen["warnings"][1:]}
    assert fields == {
        "support": "imbalance: label 'order' has 12 examples, label 'play' has 1",
        "support[5]": "the same example as support[2]",
        "support[14].input": "cut to 64 tokens",
    }
    assert service.http.get(f"/adapters/{foreseen['adapter_id']}").status_code == 404
    assert service.http.get("/adapters", params={"limit": 200}).json() == before
    assert identity(service, {**BODY, "support": support}) == foreseen["adapter_id"]
    wrong = service.http.post("/adapt", params={"dry_run": "true"}, json={**BODY, "initialization": "nope"})
    assert wrong.status_code == 422


def test_an_idempotency_key_belongs_to_one_request(service: Served, adapter: str) -> None:
    headers = {"Idempotency-Key": "order 66!", "Prefer": "wait=30"}
    first = service.http.post("/adapt", json=BODY, headers=headers)
    assert first.status_code == 200 and first.json()["adapter_id"] == adapter
    assert service.http.post("/adapt", json=BODY, headers=headers).json() == first.json()
    for other in ({**BODY, "options": {"seed": 1}}, {**BODY, "name": "other"}, {**BODY, "support": SUPPORT[:4]}):
        refused = service.http.post("/adapt", json=other, headers=headers)
        assert refused.status_code == 422 and refused.json()["type"] == "/problems/idempotency-key-used-otherwise"
    more = {"support": [{"input": "order a taxi", "label": "order"}]}
    assert service.http.post(f"/adapters/{adapter}/examples", json=more, headers=headers).status_code == 422
    assert adapt(service, {**BODY, "options": {"seed": 1}}).status_code == 200  # without the idempotency key
    for wrong in (b"", "é".encode("latin-1"), b"x" * 256):
        refused = service.http.post("/adapt", json=BODY, headers={b"Idempotency-Key": wrong})
        assert refused.status_code == 422 and refused.json()["errors"][0]["field"].lower() == "idempotency-key"
    assert "order 66" not in service.log.read_text()


def test_further_examples_give_a_new_adapter(service: Served, adapter: str) -> None:
    more = [{"input": "call a taxi", "label": "call"}, {"input": "call taxi now", "label": "call"}]
    path = f"/adapters/{adapter}/examples"
    child = service.http.post(path, json={"support": more, "name": "second", "tags": ["c"]}, headers={"Prefer": "wait=30"})
    assert child.status_code == 200, child.text
    view = service.http.get(f"/adapters/{child.json()['adapter_id']}").json()
    assert (view["parent"], view["name"], view["tags"], view["examples"]) == (adapter, "second", ["c"], 7)
    assert view["labels"] == ["call", "close", "order", "play"] and view["steps"] == 10
    assert child.json()["adapter_id"] == identity(
        service, {**BODY, "support": [*SUPPORT, *more]}
    )  # one request with all examples gives the same adapter
    assert service.http.get(f"/adapters/{adapter}").json()["examples"] == 5
    for body, field, expected in (
        ({"support": [{"input": "order pizza", "label": "play"}]}, "support[0].label", "'order' as in the adapter"),
        ({"support": []}, "support", "1 to 45 examples beside the adapter's 5"),
        ({"support": more * 23}, "support", "1 to 45 examples beside the adapter's 5"),
        ({"support": more, "initialization": "default"}, "initialization", "no such field"),
    ):
        refused = service.http.post(path, json=body)
        assert refused.status_code == 422 and refused.json()["errors"][0]["field"] == field, refused.text
        assert refused.json()["errors"][0]["expected"].startswith(expected)
    foreseen = service.http.post(path, params={"dry_run": "true"}, json={"support": [*more, SUPPORT[0]]}).json()
    assert foreseen["status"] == "new" and foreseen["examples"] == 8
    assert {"field": "support[2]", "message": "the same example as one that the adapter has"} in foreseen["warnings"]
    assert service.http.post("/adapters/a0/examples", json={"support": more}).status_code == 404


def test_options_default_to_the_parents_and_a_default_number_of_steps_is_chosen_again(service: Served) -> None:
    several = [*SUPPORT, {"input": "play music", "label": "play"}]
    body = {"support": SUPPORT, "initialization": "contrastive", "options": {"seed": 3, "label_words": True}}
    asked = {**body, "options": {**body["options"], "steps": 2}}  # type: ignore[dict-item]
    for parent, options, expected in (
        (body, {}, (3, True, 3)),
        (asked, {}, (3, True, 2)),
        (asked, {"steps": None, "label_words": False, "seed": 4}, (4, False, 3)),
    ):
        path = f"/adapters/{identity(service, parent)}/examples"
        answer = service.http.post(path, json={"support": several[5:], "options": options}, headers={"Prefer": "wait=30"})
        view = service.http.get(f"/adapters/{answer.json()['adapter_id']}").json()
        assert (view["seed"], view["label_words"], view["steps"]) == expected
        assert view["initialization"] == "contrastive"


def test_scores_agree_with_predictions(service: Served, adapter: str) -> None:
    examples = [*SUPPORT, {"input": "order pizza now", "label": "close"}, {"input": "play", "label": "play"}]
    guesses = [row["label"] for row in predict(service, adapter, [e["input"] for e in examples]).json()["predictions"]]
    scored = service.http.post(f"/adapters/{adapter}/score", json={"examples": examples}).json()
    wrong = [i for i, (e, guess) in enumerate(zip(examples, guesses, strict=True)) if e["label"] != guess]
    assert scored["mistakes"] == wrong and 5 in wrong
    assert scored["accuracy"] == pytest.approx(1 - len(wrong) / 7) and scored["examples"] == 7
    assert scored["confusion"]["close"]["order"] >= 1 and scored["labels"]["close"]["examples"] == 3
    assert scored["digest"] == service.http.get(f"/adapters/{adapter}").json()["digest"]
    unknown = service.http.post(f"/adapters/{adapter}/score", json={"examples": [{"input": "x", "label": "nothing"}]})
    assert unknown.status_code == 422 and unknown.json()["errors"][0]["field"] == "examples[0].label"
    assert service.http.post(f"/adapters/{adapter}/score", json={"examples": []}).status_code == 422
    assert service.http.post("/adapters/a0/score", json={"examples": examples}).status_code == 404


def parsed(stream: httpx.Response) -> Iterator[tuple[str, str, Any]]:
    """Parse a server-sent event stream. Yield (id, event name, parsed data) for each event."""
    fields: dict[str, str] = {}
    for line in stream.iter_lines():
        if not line and fields:
            yield fields["id"], fields["event"], json.loads(fields["data"])
            fields = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


def events_of(service: Served, adapter: str, after: str | None = None) -> list[tuple[str, str, Any]]:
    headers = {} if after is None else {"Last-Event-ID": after}
    with service.http.stream("GET", f"/adapters/{adapter}/events", headers=headers) as stream:
        if stream.status_code == 204:
            return []
        assert stream.status_code == 200 and stream.headers["content-type"].startswith("text/event-stream")
        return list(parsed(stream))


def test_events_cover_a_job_from_start_to_end_and_resume_after_any_of_them(service: Served) -> None:
    adapter = service.http.post("/adapt", json={**BODY, "options": {"steps": 60, "seed": 400}}).json()["adapter_id"]
    seen = events_of(service, adapter)
    view = service.http.get(f"/adapters/{adapter}").json()
    steps = [data for _, kind, data in seen if kind == "step"]
    assert [data["step"] for data in steps] == list(range(1, 61))
    assert [data["support_loss"] for data in steps] == view["support_loss"]
    assert seen[-1][1:] == ("end", view) and [kind for _, kind, _ in seen].count("end") == 1
    assert {kind for _, kind, _ in seen[:-61]} <= {"status"} and len({number for number, _, _ in seen}) == len(seen)
    again = events_of(service, adapter)
    assert again == seen[-61:]
    for i in (0, 30, 59):
        assert events_of(service, adapter, again[i][0]) == again[i + 1 :]
    assert events_of(service, adapter, again[-1][0]) == []  # 204: there are no more events
    assert events_of(service, adapter, "0-0") == again  # an id from an earlier attempt: all events are sent
    assert service.http.get("/adapters/a0/events").status_code == 404
    for wrong in ("x", "1", "1-", "-1-2"):
        assert service.http.get(f"/adapters/{adapter}/events", headers={"Last-Event-ID": wrong}).status_code == 422


def test_events_stop_without_an_end_event_if_the_adapter_is_deleted(service: Served) -> None:
    worker = service.worker()
    worker.suspend()
    try:
        adapter = service.http.post("/adapt", json={**BODY, "options": {"steps": 60, "seed": 401}}).json()["adapter_id"]
        with service.http.stream("GET", f"/adapters/{adapter}/events") as stream:
            reader = parsed(stream)
            assert next(reader)[1:] == ("status", {"status": "queued", "attempt": 0})
            assert httpx.delete(f"{service.url}/adapters/{adapter}").status_code == 204
            assert list(reader) == []
    finally:
        worker.resume()
    service.wait_ready()


@pytest.mark.long
def test_an_idle_stream_sends_keep_alive_comments(service: Served) -> None:
    worker = service.worker()
    worker.suspend()
    try:
        adapter = service.http.post("/adapt", json={**BODY, "options": {"steps": 60, "seed": 403}}).json()["adapter_id"]
        with service.http.stream("GET", f"/adapters/{adapter}/events") as stream:
            began = time.monotonic()
            comment = next(line for line in stream.iter_lines() if line.startswith(":"))
        assert comment == ": alive" and 14 < time.monotonic() - began < 17
    finally:
        worker.resume()
    service.wait_ready()


def test_many_streams_do_not_slow_down_the_service(service: Served) -> None:
    adapter = service.http.post("/adapt", json={**BODY, "options": {"steps": 100, "seed": 402}}).json()["adapter_id"]
    streams: list[list[tuple[str, str, Any]]] = []
    threads = [threading.Thread(target=lambda: streams.append(events_of(service, adapter))) for _ in range(30)]
    for thread in threads:
        thread.start()
    slowest = 0.0
    while any(thread.is_alive() for thread in threads):
        began = time.monotonic()
        assert httpx.get(f"{service.url}/healthz").status_code == 200
        slowest = max(slowest, time.monotonic() - began)
    assert len(streams) == 30 and all(events[-1][1] == "end" for events in streams)
    assert slowest < 2


def test_the_openapi_document_is_complete(service: Served) -> None:
    document = service.http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    operations = [(path, method, operation) for path, methods in document["paths"].items() for method, operation in methods.items()]
    assert len({operation["operationId"] for _, _, operation in operations}) == len(operations) == 22
    for path, method, operation in operations:
        assert operation["description"], (method, path)
        for status, answer in operation["responses"].items():
            assert answer["headers"]["X-Request-ID"] and answer["description"]
            if status >= "400":
                content = answer["content"]["application/problem+json"]
                assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
                for kind, example in content["examples"].items():
                    assert example["value"]["type"] == f"/problems/{kind}" and example["value"]["status"] == int(status)
                assert list(answer["content"]) == ["application/problem+json"]
            elif status != "204":
                assert has_example(answer["content"], schemas), (method, path, status)
        if "requestBody" in operation:
            assert has_example(operation["requestBody"]["content"], schemas), (method, path)
        if path not in ("/healthz", "/readyz"):
            assert {"401", "403", "429", "500", "503"} <= operation["responses"].keys()
    support = schemas["AdaptRequest"]["properties"]["support"]
    assert (support["minItems"], support["maxItems"]) == (2, 50)  # MAX_EXAMPLES of this service
    assert schemas["Example"]["properties"]["label"]["maxLength"] == 200
    fields = {(name, field): schemas[name]["properties"][field] for name, field in INTEGER_FIELDS}
    flattened = {key: {**schema, **schema.get("anyOf", [{}])[0]} for key, schema in fields.items()}
    assert {key: [schema.get(bound) for bound in BOUNDS] for key, schema in flattened.items()} == INTEGER_FIELDS
    initialization = schemas["AdaptRequest"]["properties"]["initialization"]
    # The document is public, but the names of the initializations are not.
    assert "enum" not in initialization and initialization["examples"] == ["default"]
    assert "default" not in initialization  # this service has no initialization named `default`


BOUNDS = ("type", "minimum", "maximum", "exclusiveMaximum")
INTEGER_FIELDS = {
    ("Options", "steps"): ["integer", 0, 100, None],
    ("Options", "seed"): ["integer", 0, None, 2**31],
    ("AdaptRequest", "ttl_seconds"): ["integer", 1, 90 * 24 * 3600, None],
    ("ExamplesRequest", "ttl_seconds"): ["integer", 1, 90 * 24 * 3600, None],
    ("PredictRequest", "top_k"): ["integer", 1, None, None],
}


def has_example(content: dict[str, Any], schemas: dict[str, Any]) -> bool:
    for media_type in content.values():
        if "example" in media_type:
            return True
        alternatives = [media_type["schema"], *media_type["schema"].get("anyOf", [])]
        return any(schemas[part["$ref"].rsplit("/", 1)[1]].get("examples") for part in alternatives if "$ref" in part)
    return False
