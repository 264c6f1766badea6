"""Event streams and waiting requests on a service without a worker, so that jobs stay queued."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import redis

from metatrain.models.base import Base
from service.http.routes import events
from tests.conftest import RedisServer
from tests.service.workerless import BODY, LATE, queued, running
from worker.ledger.api_keys import KEY_CACHE_SECONDS, Keys


@contextmanager
def open_stream(http: httpx.Client, adapter: str, **options: Any) -> Iterator[Iterator[str]]:
    """Open an adapter's event stream and yield its lines after the first one."""
    with http.stream("GET", f"/adapters/{adapter}/events", **options) as stream:
        assert stream.status_code == 200
        lines = stream.iter_lines()
        assert next(lines) == "event: status"
        yield lines


def test_open_streams_and_waiting_requests_of_a_tenant_are_limited(tiny: Base, redis_server: RedisServer) -> None:
    keys = Keys(redis.Redis.from_url(redis_server.url))
    headers, other_headers = ({"Authorization": f"Bearer {keys.create(tenant, '', ['adapt'])[1]}"} for tenant in ("acme", "globex"))
    with running(tiny, redis_server, max_streams=2) as http:
        adapter = queued(http, headers=headers)
        with ExitStack() as streams:
            for _ in range(2):
                streams.enter_context(open_stream(http, adapter, headers=headers))
            changed = {**BODY, "options": {"steps": 0, "seed": 1}}
            for refused in (
                http.get(f"/adapters/{adapter}/events", headers=headers),
                http.post("/adapt", json=changed, headers={**headers, "Prefer": "wait=1"}),
            ):
                assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1
                problem = refused.json()
                assert problem["type"] == "/problems/quota-exceeded"
                assert (problem["limit"], problem["most"], problem["used"]) == ("MAX_STREAMS", 2, 2)
            assert len(http.get("/adapters", headers=headers).json()["adapters"]) == 1  # refused before it was recorded
            queued(http, headers={**other_headers, "Prefer": "wait=0.1"})
            queued(http, headers=headers)  # does not wait
        deadline = time.monotonic() + LATE
        while http.post("/adapt", json=BODY, headers={**headers, "Prefer": "wait=0.05"}).status_code == 429:
            assert time.monotonic() < deadline  # the service needs a moment to notice that the streams are closed
        for _ in range(3):
            queued(http, headers={**headers, "Prefer": "wait=0.05"})


def test_a_stream_ends_with_its_key(tiny: Base, redis_server: RedisServer) -> None:
    keys = Keys(redis.Redis.from_url(redis_server.url))
    with running(tiny, redis_server) as http:
        with open_stream(http, queued(http)) as without_key:
            identity, secret_key, _ = keys.create("acme", "", ["adapt"])
            began = time.monotonic()
            list(without_key)  # ends, because a key is required now
        headers = {"Authorization": f"Bearer {secret_key}"}
        with open_stream(http, queued(http, headers=headers), headers=headers) as with_key:
            keys.revoke(identity)
            list(with_key)
        assert time.monotonic() - began < 2 * (KEY_CACHE_SECONDS + events.KEY_CHECK_SECONDS) + 2


def test_a_stream_ends_after_its_longest_life_and_can_be_resumed(
    tiny: Base, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LONGEST_SECONDS", 0.3)
    with running(tiny, redis_server) as http:
        adapter = queued(http)
        with open_stream(http, adapter) as lines:
            first = list(lines)
        assert json.loads(first[0].removeprefix("data: "))["status"] == "queued"
        last = next(line for line in first if line.startswith("id: ")).removeprefix("id: ")
        again = http.get(f"/adapters/{adapter}/events", headers={"Last-Event-ID": last})
        assert again.status_code == 200 and again.text == ""


def test_a_stream_that_loses_the_records_ends_with_one_warning(
    tiny: Base, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tiny, redis_server) as http, open_stream(http, queued(http)) as lines:
        redis_server.stop()
        list(lines)
        time.sleep(0.2)
    assert len([record for record in caplog.records if "a stream ends" in record.getMessage()]) == 1
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
