"""Requests are refused before they cost much: bodies in flight, numbers of values, and quotas."""

import json
import socket
import time
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
import redis

from metatrain.models.base import Base
from service.errors import InvalidRequest, Unavailable
from service.http.body_budget import BodyBudget
from service.http.route import PARSED_ON_LOOP, _check_number_of_values
from tests.conftest import RedisServer
from tests.servers import until
from tests.service.workerless import BODY, LABELS, queued, running
from worker.errors import LimitReached
from worker.ledger.api_keys import Keys

JSON = {"content-type": "application/json"}


def headers_of(redis_server: RedisServer, *tenants: str) -> list[dict[str, str]]:
    keys = Keys(redis.Redis.from_url(redis_server.url))
    return [{"Authorization": f"Bearer {keys.create(tenant, '', ['adapt'])[1]}"} for tenant in tenants]


def begun(http: httpx.Client, headers: dict[str, str], declared: int | None, sent: int) -> socket.socket:
    """Send the beginning of a body and return the open connection.

    `declared`: the body's Content-Length; None: chunked."""
    connection = socket.create_connection((http.base_url.host, int(http.base_url.port or 80)), timeout=10)
    length = "transfer-encoding: chunked" if declared is None else f"content-length: {declared}"
    lines = [
        "POST /adapt HTTP/1.1",
        "host: x",
        "content-type: application/json",
        length,
        *(f"{k}: {v}" for k, v in headers.items()),
    ]
    body = b" " * sent if declared is not None else f"{sent:x}\r\n".encode() + b" " * sent + b"\r\n"
    connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    return connection


@pytest.mark.parametrize("declared", [60_000, None])
def test_bodies_in_flight_are_limited_for_each_tenant_and_in_total(
    tiny: Base, redis_server: RedisServer, declared: int | None
) -> None:
    noisy, quiet, third = headers_of(redis_server, "noisy", "quiet", "third")
    content = json.dumps({**BODY, "name": "x" * 100}).encode() + b" " * 30_000
    limits: dict[str, Any] = {"max_body_bytes": 80_000, "max_tenant_bodies_bytes": 80_000, "max_bodies_bytes": 130_000}
    sent = 60_000 if declared is None else 10_000
    with running(tiny, redis_server, **limits) as http, ExitStack() as connections:

        def held(headers: dict[str, str]) -> int:
            return int(http.get("/usage", headers=headers).json()["bodies_bytes"])

        def post(headers: dict[str, str]) -> httpx.Response:
            return http.post("/adapt", content=content, headers={**headers, **JSON})

        first = connections.enter_context(begun(http, noisy, declared, sent))
        until(lambda: held(noisy) == 60_000)
        refused = post(noisy)
        assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1
        problem = refused.json()
        assert (problem["limit"], problem["most"], problem["used"]) == ("MAX_TENANT_BODIES_BYTES", 80_000, 60_000)
        assert post(quiet).status_code == 202  # it would not be with one share for all
        second = connections.enter_context(begun(http, quiet, declared, sent))
        until(lambda: held(quiet) == 60_000)
        refused = post(third)
        assert refused.status_code == 503 and int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["type"] == "/problems/unavailable"
        for connection in (first, second):
            connection.close()
        until(lambda: held(noisy) == held(quiet) == 0)
        assert post(third).status_code == post(noisy).status_code == 202


def test_one_body_at_the_limit_is_always_possible_on_an_idle_service() -> None:
    budget = BodyBudget(100, lambda tenant: {"MAX_TENANT_BODIES_BYTES": 50})
    budget.reserve("t", 120)
    with pytest.raises(LimitReached):
        budget.reserve("t", 1)
    with pytest.raises(Unavailable):
        budget.reserve("u", 1)
    budget.reserve("t", 30, own=120)  # the same body, whose further bytes arrive
    budget.release("t", 150)
    budget.reserve("u", 30)
    with pytest.raises(LimitReached):
        budget.reserve("u", 30)
    assert (budget.held("t"), budget.held("u")) == (0, 30)
    unlimited = BodyBudget(0, lambda tenant: {})
    for _ in range(3):
        unlimited.reserve("t", 10**12)


@pytest.mark.parametrize(
    "content",
    [
        '{"support":[' + ",".join(['{"input":"a","label":"b"}'] * 270_000) + "]}",
        '{"support":[' + ",".join(["[]"] * 2_600_000) + "]}",
        "{" + ",".join(f'"{n:x}":0' for n in range(700_000)) + "}",
        "[" * 7_000_000,
        '"' * 7_000_000,
    ],
    ids=["examples", "lists", "names", "nested", "quotes"],
)
def test_too_many_values_are_refused_before_they_are_created(content: str) -> None:
    began = time.process_time()
    with pytest.raises(InvalidRequest, match="at most 64000 JSON values"):
        _check_number_of_values(content, 64_000)
    assert time.process_time() - began < 1  # parsing them takes up to five


@pytest.mark.parametrize("text", ['"' * 9_000, "\\" * 9_000, '\\"' * 4_000, ",:[{" * 2_000, '\\\\"\\,' * 1_500])
def test_texts_do_not_count_as_values(text: str) -> None:
    _check_number_of_values(json.dumps({"support": [{"input": text, "label": text}] * 20}), 64)


def test_a_large_body_gets_the_answers_of_a_small_one(tiny: Base, redis_server: RedisServer) -> None:
    support = [{"input": f"order {n} {LABELS[n % 5]} " + "pizza " * 40, "label": LABELS[n % 5]} for n in range(400)]

    def content(change: Any) -> bytes:
        body: Any = {"support": [dict(example) for example in support], "initialization": "lora-from-zero"}
        change(body)
        sent = json.dumps(body).encode()
        assert len(sent) > PARSED_ON_LOOP
        return sent

    with running(tiny, redis_server) as http:

        def post(sent: bytes, **headers: str) -> httpx.Response:
            return http.post("/adapt", content=sent, headers={**JSON, **headers})

        assert post(content(lambda body: None)).status_code == 202
        for change, field, expected in (
            (
                lambda body: body["support"][399].update(label=3),
                "support[399].label",
                "a text; write a class that is a number in quotes",
            ),
            (lambda body: body["support"][7].update(more=3), "support[7].more", "no such field"),
            (lambda body: body["support"][7].pop("input"), "support[7].input", "a value"),
            (lambda body: body["support"][7].update(input="\ud800"), "support[7].input", "Unicode text without lone surrogates"),
            (lambda body: body["support"].extend(body["support"] * 5), "support", "2 to 2000 examples"),
            (lambda body: body.pop("support") and body.update(name="x" * 70_000), "support", "a value"),
        ):
            refused = post(content(change))
            assert refused.status_code == 422, refused.text
            assert (refused.json()["errors"][0]["field"], refused.json()["errors"][0]["expected"]) == (field, expected)
        broken = post(content(lambda body: None)[:-3]).json()
        assert broken["errors"][0]["field"] == "body" and "at character" in broken["errors"][0]["got"]
        assert post(content(lambda body: None) + b"\xff").json()["errors"][0]["got"] == "'a body that cannot be decoded'"
        assert post(content(lambda body: None), **{"content-type": "text/plain"}).json()["errors"][0]["field"] == "Content-Type"
        many = post(b'{"support":[' + b",".join([b"{}"] * 70_000) + b"]}")
        assert many.json()["errors"][0] == {"field": "body", "expected": "at most 64000 JSON values", "got": "'more'"}


def test_a_request_beyond_a_limit_is_refused_before_its_texts_are_tokenized(
    tiny: Base, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenized: list[int] = []
    encode = type(tiny.inputs).encode

    def counted(inputs: Any, raw: Any, *rest: Any) -> Any:
        tokenized.append(len(raw))
        return encode(inputs, raw, *rest)

    with running(tiny, redis_server, max_jobs=1) as http:
        monkeypatch.setattr(type(tiny.inputs), "encode", counted)
        first = queued(http, headers={"Idempotency-Key": "first"})
        assert tokenized == [2]
        changed = {**BODY, "options": {"steps": 0, "seed": 1}}
        more = {"support": [{"input": "close it now", "label": "close"}]}
        for path, body in (("/adapt", changed), (f"/adapters/{first}/examples", more)):
            refused = http.post(path, json=body)
            assert refused.status_code == 429 and refused.json()["limit"] == "MAX_JOBS"
        assert tokenized == [2]
        assert queued(http) == queued(http, headers={"Idempotency-Key": "first"}) == first  # it exists, so no limit applies
        assert http.post("/adapt", json=changed, params={"dry_run": True}).status_code == 200  # it makes no job


def test_usage_shows_every_limit_and_what_is_used(tiny: Base, redis_server: RedisServer) -> None:
    with running(tiny, redis_server, max_streams=7) as http:
        usage = http.get("/usage").json()
        assert usage["limits"]["MAX_STREAMS"] == 7 and usage["streams"] == 0
        assert all(most > 0 for most in usage["limits"].values())  # out of the box, nothing is unlimited
        adapter = queued(http)
        with http.stream("GET", f"/adapters/{adapter}/events") as stream:
            lines = stream.iter_lines()
            next(lines)
            assert http.get("/usage").json()["streams"] == 1
