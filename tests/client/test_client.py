"""The client's retries, errors and events, against a real HTTP server with scripted replies."""

import asyncio
import json
import socket
import time
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quickstudy import (
    AsyncClient,
    Client,
    Conflict,
    EndEvent,
    NotFound,
    NotReady,
    NotUnderstood,
    OutOfReach,
    QuickstudyError,
    RateLimited,
    StatusEvent,
    StepEvent,
    Unauthorised,
    Unavailable,
)
from quickstudy.errors import error_of
from quickstudy.events import EventStream
from quickstudy.retries import Retries

from tests.client.scripted import ADAPTED, ADAPTER, Reply, problem, serving

KEY = "qs_0123456789ab_secretsecretsecretsecretsecretsecretsecret1"
PAIRS = [("order pizza", "order"), ("play a song", "play")]
BUSY = problem(503, "the queue is out of reach", {"Retry-After": "0"})


@pytest.mark.parametrize("first", [BUSY, problem(429, headers={"Retry-After": "0"}), Reply(502, b"<html>"), Reply(end="dropped")])
def test_a_transient_failure_is_retried_with_the_same_idempotency_key(first: Reply) -> None:
    with serving(first, first, Reply(202, ADAPTED)) as server, Client(server.url) as quickstudy:
        assert quickstudy.adapt(PAIRS).adapter_id == "a1"
    keys = {request.headers["idempotency-key"] for request in server.requests}
    assert len(server.requests) == 3 and len(keys) == 1 and len(keys.pop()) == 32
    with serving(Reply(202, ADAPTED)) as another, Client(another.url) as quickstudy:
        quickstudy.adapt(PAIRS)
    assert another.requests[0].headers["idempotency-key"] != server.requests[0].headers["idempotency-key"]


def test_the_async_client_retries_with_the_same_idempotency_key() -> None:
    async def adapt(url: str) -> str:
        async with AsyncClient(url) as quickstudy:
            return (await quickstudy.adapt(PAIRS)).adapter_id

    with serving(BUSY, Reply(end="dropped"), Reply(202, ADAPTED)) as server:
        assert asyncio.run(adapt(server.url)) == "a1"
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 1


def test_retry_after_is_obeyed_up_to_two_minutes() -> None:
    with serving(problem(503, headers={"Retry-After": "1"}), Reply(200, ADAPTER)) as server, Client(server.url) as quickstudy:
        began = time.monotonic()
        quickstudy.adapter("a1")
        assert 1 <= time.monotonic() - began < 3
    date = {"Retry-After": "Thu, 01 Jan 2026 00:00:00 GMT"}  # a date in the past
    with serving(problem(503, headers=date), Reply(200, ADAPTER)) as server, Client(server.url) as quickstudy:
        assert quickstudy.adapter("a1").timings == {"queue": 1.0}
    with (
        serving(problem(503, headers={"Retry-After": "3600"})) as server,
        Client(server.url) as quickstudy,
        pytest.raises(Unavailable) as error,
    ):
        quickstudy.adapter("a1")
    assert error.value.retry_after == 3600


def test_pauses_double_up_to_ten_seconds_minus_jitter() -> None:
    error = Unavailable(503, {})
    assert [Retries(10_000, lambda: 0.0).pause(attempt, error) for attempt in (0, 1, 2, 5, 6, 9_999)] == [
        0.2,
        0.4,
        0.8,
        6.4,
        10,
        10,
    ]
    assert Retries(3, lambda: 1.0).pause(2, error) == 0.4 and Retries(3).pause(3, error) is None


@pytest.mark.parametrize("header", ["soon", "-1", "1.5", "²"])
def test_a_malformed_retry_after_is_ignored(header: str) -> None:
    answer = httpx.Response(503, headers={b"Retry-After": header.encode()})
    assert error_of(answer).retry_after is None


def test_the_number_of_retries_is_limited() -> None:
    with serving(BUSY, BUSY) as server, Client(server.url, retries=1) as quickstudy, pytest.raises(Unavailable) as error:
        quickstudy.adapter("a1")
    assert str(error.value) == "the queue is out of reach" and error.value.status == 503
    with serving(Reply(end="dropped")) as server, Client(server.url, retries=0) as quickstudy, pytest.raises(OutOfReach):
        quickstudy.adapter("a1")


def test_a_limit_on_stored_adapters_is_not_retried() -> None:
    full = problem(429, headers={"Retry-After": "0"}, limit="MAX_ADAPTERS", most=3, used=3)
    with serving(full) as server, Client(server.url) as quickstudy, pytest.raises(RateLimited) as error:
        quickstudy.adapt(PAIRS)
    assert error.value.limit == "MAX_ADAPTERS" and error.value.problem["used"] == 3


@pytest.mark.parametrize(
    ("status", "kind"), [(401, Unauthorised), (403, Unauthorised), (404, NotFound), (409, Conflict), (500, QuickstudyError)]
)
def test_a_permanent_error_is_not_retried(status: int, kind: type[QuickstudyError]) -> None:
    with serving(problem(status, "because")) as server, Client(server.url) as quickstudy, pytest.raises(kind, match="because") as e:
        quickstudy.predict("a1", "order pizza")
    assert type(e.value) is kind and e.value.problem["title"] == "No"


def test_not_found_after_a_lost_answer_means_that_the_deletion_succeeded() -> None:
    with serving(Reply(end="dropped"), problem(404)) as server, Client(server.url) as quickstudy:
        quickstudy.delete("a1")
    with serving(BUSY, problem(404)) as server, Client(server.url) as quickstudy, pytest.raises(NotFound):
        quickstudy.delete("a1")  # no response was lost, so the adapter never existed


def test_a_conditional_alias_move_is_not_retried_after_a_lost_answer() -> None:
    with serving(Reply(end="dropped")) as server, Client(server.url) as quickstudy, pytest.raises(OutOfReach):
        quickstudy.set_alias("voices", "a1", expected="a0")
    moved = {"alias": "voices", "adapter_id": "a1", "previous": None}
    with serving(Reply(end="dropped"), Reply(200, moved)) as server, Client(server.url) as quickstudy:
        assert quickstudy.set_alias("voices", "a1").previous is None
    assert server.requests[0].body == {"adapter_id": "a1"}


def test_no_server_is_out_of_reach_after_one_retry() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://user:password@127.0.0.1:{free.getsockname()[1]}"
        with Client(url, api_key=KEY, retries=1) as quickstudy:
            began = time.monotonic()
            with pytest.raises(OutOfReach, match=r"^http://127.0.0.1:\d+ is out of reach: ") as error:
                quickstudy.initializations()
            assert time.monotonic() - began >= 0.1  # the pause before the retry
            assert not quickstudy.ready() and quickstudy.ready().missing == ("service",)
    assert "password" not in str(error.value) and error.value.status is None


def test_readiness_names_the_missing_parts() -> None:
    replies = (problem(503, missing=["worker", "cache"]), Reply(200, {"status": "ready"}), problem(500))
    with serving(*replies) as server, Client(server.url) as quickstudy:
        states = [quickstudy.ready(), quickstudy.ready(), quickstudy.ready()]
    assert [(bool(state), state.missing) for state in states] == [(False, ("worker", "cache")), (True, ()), (False, ())]


def test_a_timeout_is_not_retried() -> None:
    slow = Reply(200, b"{", end="hangs")
    with serving(slow) as server, Client(server.url, timeout=0.2) as quickstudy, pytest.raises(OutOfReach, match="timed out"):
        quickstudy.adapter("a1")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"<html>", "not JSON"),
        ([], "Adapter: expected Adapter, got list"),
        ({**ADAPTER, "labels": [1]}, r"Adapter.labels\[0\]: expected str, got int"),
        ({**ADAPTER, "status": None}, "Adapter.status: expected .*, got NoneType"),
        ({**ADAPTER, "pinned": 1}, "Adapter.pinned: expected bool, got int"),
        ({**ADAPTER, "expires_at": "soon"}, "Adapter.expires_at: expected float, got str"),
        ({name: value for name, value in ADAPTER.items() if name != "seed"}, "Adapter.seed: expected int, got NoneType"),
    ],
)
def test_a_malformed_answer_is_refused_with_the_field(body: Any, named: str) -> None:
    with serving(Reply(200, body)) as server, Client(server.url) as quickstudy, pytest.raises(NotUnderstood, match=named):
        quickstudy.adapter("a1")


def test_unknown_fields_and_statuses_are_accepted() -> None:
    more = {**ADAPTER, "colour": "red", "name": "voices", "status": "melting"}
    with serving(Reply(200, more)) as server, Client(server.url) as quickstudy:
        adapter = quickstudy.adapter("a1")
    assert adapter.name == "voices" and str(adapter.status) == "melting"


def test_the_key_comes_from_the_environment_and_is_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUICKSTUDY_API_KEY", f"{KEY}\n")
    with serving(Reply(200, ADAPTER), problem(401)) as server, Client(server.url) as quickstudy:
        quickstudy.adapter("a1")
        with pytest.raises(Unauthorised) as refused:
            quickstudy.adapter("a1")
        assert KEY not in repr(quickstudy) + repr(refused.value)
    with serving(Reply(200, ADAPTER)) as another, Client(another.url, api_key="") as quickstudy:
        quickstudy.adapter("a1")
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}" and "authorization" not in another.requests[0].headers
    with pytest.raises(ValueError, match="api_key: expected") as error:
        Client(api_key=f"{KEY}\nX-Other: 1")
    assert KEY not in str(error.value)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://localhost", "http://", "/adapt"])
def test_a_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="url: expected one like http://localhost:8000"):
        Client(url)


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_that_would_change_the_path_is_refused(name: str) -> None:
    with Client() as quickstudy, pytest.raises(ValueError, match="expected an adapter's id"):
        quickstudy.delete(name)


def test_names_are_escaped_to_one_segment_of_the_path() -> None:
    with serving(Reply(200, ADAPTER)) as server, Client(f"{server.url}/behind/a/proxy") as quickstudy:
        quickstudy.adapter("a/b?c")
    assert server.requests[0].path == "/behind/a/proxy/adapters/a%2Fb%3Fc"


def test_parts_are_halved_when_refused_and_go_to_one_adapter() -> None:
    def answer(count: int) -> Reply:
        rows = [{"label": "order", "probabilities": {"order": 1.0}}] * count
        return Reply(200, {"adapter_id": "a1", "alias": "voices", "digest": "d", "predictions": rows, "truncated": [0]})

    refused = problem(422, "inputs: expected 1 to 2 texts", errors=[{"field": "inputs"}])
    replies = (refused, problem(413), answer(1), answer(1), answer(1), answer(1), answer(1))
    with serving(*replies) as server, Client(server.url) as quickstudy:
        predictions = quickstudy.predict("voices", ["order"] * 5)
    assert len(predictions) == 5 and predictions.truncated == (0, 1, 2, 3, 4) and predictions.alias == "voices"
    assert [(request.body["adapter_id"], len(request.body["inputs"])) for request in server.requests] == [
        ("voices", 5),
        ("voices", 2),
        ("voices", 1),
        *[("a1", 1)] * 4,
    ]


def event(identity: str, kind: str, data: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\nid: {identity}\n\n".encode()


RUNNING = event("7-0", "status", {"status": "running", "attempt": 1})
FIRST, SECOND = (event(f"7-{i}", "step", {"step": i, "support_loss": 1 / i}) for i in (1, 2))
LABELS = ["or\u2028der", "pl\x85ay"]
END = event("7-100000", "end", {**ADAPTER, "labels": LABELS})


def test_events_resume_after_a_lost_connection() -> None:
    cut = Reply(200, b": alive\n\n" + RUNNING + FIRST + SECOND[:-9], end="cut")
    over = Reply(200, event("7-9", "news", {}))  # an event of an unknown kind; the stream ends before the job does
    with serving(BUSY, cut, over, Reply(200, SECOND + END)) as server, Client(server.url) as quickstudy:
        events = list(quickstudy.events("a1"))
    assert events[:3] == [StatusEvent("7-0", "running", 1), StepEvent("7-1", 1, 1.0), StepEvent("7-2", 2, 0.5)]
    assert isinstance(events[3], EndEvent) and events[3].adapter.labels == tuple(LABELS) and len(events) == 4
    assert [request.headers.get("last-event-id") for request in server.requests] == [None, None, "7-1", "7-9"]


@given(cuts=st.lists(st.integers(0, 200), max_size=6))
def test_events_do_not_depend_on_the_chunks_in_which_they_arrive(cuts: list[int]) -> None:
    whole = b": alive\n\n" + RUNNING.replace(b"\n", b"\r\n") + FIRST + SECOND
    stream, found = EventStream(), list[tuple[str, str, str]]()
    for start, end in pairwise([0, *sorted(cut for cut in cuts if cut < len(whole)), len(whole)]):
        found += stream.feed(whole[start:end])
    assert [(identity, kind) for identity, kind, _ in found] == [("7-0", "status"), ("7-1", "step"), ("7-2", "step")]
    assert json.loads(found[2][2]) == {"step": 2, "support_loss": 0.5}


def test_the_async_client_resumes_events_too() -> None:
    async def ids(url: str) -> list[str]:
        async with AsyncClient(url) as quickstudy:
            return [event.id async for event in quickstudy.events("a1")]

    with serving(Reply(200, RUNNING + FIRST, end="cut"), Reply(200, SECOND + END)) as server:
        assert asyncio.run(ids(server.url)) == ["7-0", "7-1", "7-2", "7-100000"]


def test_without_an_event_stream_the_state_is_polled() -> None:
    running = {**ADAPTER, "status": "running", "support_loss": [0.5], "digest": None}
    states = (Reply(200, running), Reply(200, running), Reply(200, ADAPTER))
    with serving(problem(404), *states) as server, Client(server.url) as quickstudy:
        events = list(quickstudy.events("a1"))
    assert [type(event) for event in events] == [StatusEvent, StepEvent, StatusEvent, StepEvent, EndEvent]
    gone = (problem(404), problem(404, "no adapter a1"))
    with serving(*gone) as server, Client(server.url) as quickstudy, pytest.raises(NotFound, match="no adapter a1"):
        list(quickstudy.events("a1"))


def test_waiting_ends_in_time_and_reports_why_a_job_failed() -> None:
    silent = Reply(200, RUNNING, end="hangs")
    with serving(silent) as server, Client(server.url) as quickstudy:
        began = time.monotonic()
        with pytest.raises(NotReady, match=r"adapter a1 is still running after 0.3 s") as late:
            quickstudy.wait("a1", 0.3, lambda _: None)
        assert time.monotonic() - began < 2 and late.value.adapter_status == "running"
    failed = {**ADAPTER, "status": "failed", "error": "the loss is not finite"}
    replies = (Reply(202, {**ADAPTED, "status": "queued"}), Reply(200, failed))
    with (
        serving(*replies) as server,
        Client(server.url) as quickstudy,
        pytest.raises(NotReady, match="the loss is not finite") as error,
    ):
        quickstudy.adapt(PAIRS)
    assert error.value.adapter_status == "failed" and error.value.problem["adapter_id"] == "a1"


BUSY_FOR_LONG = problem(429, "enough for now", {"Retry-After": "30"})
QUEUED = Reply(202, {**ADAPTED, "status": "queued"})
RUNNING_STATE = Reply(200, {**ADAPTER, "status": "running", "digest": None})


@pytest.mark.parametrize(
    "replies",
    [(BUSY_FOR_LONG,), (QUEUED, BUSY_FOR_LONG), (QUEUED, RUNNING_STATE, BUSY_FOR_LONG)],
    ids=["adapt", "state", "events"],
)
def test_retries_end_when_the_waiting_time_is_over(replies: tuple[Reply, ...]) -> None:
    async def adapt(url: str) -> None:
        async with AsyncClient(url) as quickstudy:
            await quickstudy.adapt(PAIRS, wait=0.3)

    for asynchronous in (False, True):
        began = time.monotonic()
        with serving(*replies) as server, Client(server.url) as quickstudy, pytest.raises(NotReady):
            if asynchronous:
                asyncio.run(adapt(server.url))
            else:
                quickstudy.adapt(PAIRS, wait=0.3)
        assert 0.3 <= time.monotonic() - began < 3


def test_waiting_follows_the_events_and_polls_if_there_are_too_many_streams() -> None:
    with serving(QUEUED, RUNNING_STATE, Reply(200, RUNNING + END)) as server, Client(server.url) as quickstudy:
        assert quickstudy.adapt(PAIRS).status == "ready"
    assert [request.path for request in server.requests] == ["/adapt", "/adapters/a1", "/adapters/a1/events"]
    many = problem(429, headers={"Retry-After": "5"}, limit="MAX_STREAMS")
    with serving(QUEUED, RUNNING_STATE, many, RUNNING_STATE, Reply(200, ADAPTER)) as server, Client(server.url) as quickstudy:
        began = time.monotonic()
        assert quickstudy.adapt(PAIRS).status == "ready" and time.monotonic() - began < 3


def test_all_pages_of_a_list_are_read() -> None:
    after = (("a1", "a1"), ("a2", "a2"), ("a3", None))
    pages = [{"adapters": [{**ADAPTER, "adapter_id": name}], "next_cursor": following} for name, following in after]
    with serving(*(Reply(200, page) for page in pages)) as server, Client(server.url) as quickstudy:
        assert [adapter.adapter_id for adapter in quickstudy.adapters(status="ready", tag=None)] == ["a1", "a2", "a3"]
    assert [request.path for request in server.requests] == [
        "/adapters?status=ready&limit=200",
        "/adapters?status=ready&limit=200&cursor=a1",
        "/adapters?status=ready&limit=200&cursor=a2",
    ]


def test_only_given_options_are_sent() -> None:
    with serving(Reply(202, ADAPTED), Reply(202, ADAPTED)) as server, Client(server.url) as quickstudy:
        quickstudy.adapt(PAIRS, wait=0)
        quickstudy.adapt(PAIRS, wait=2.5, steps=3, label_words=True, initialization="default", tags=("a", "b"), ttl_seconds=9)
    support = [{"input": text, "label": label} for text, label in PAIRS]
    assert server.requests[0].body == {"support": support} and "prefer" not in server.requests[0].headers
    assert server.requests[1].headers["prefer"] == "wait=2.5"
    assert server.requests[1].body == {
        "support": support,
        "options": {"steps": 3, "label_words": True},
        "initialization": "default",
        "tags": ["a", "b"],
        "ttl_seconds": 9,
    }
