"""Streams and waits of a service without a worker, where each job stays queued and each stream open."""

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
def opened(http: httpx.Client, adapter: str, **more: Any) -> Iterator[Iterator[str]]:
    """The lines of a stream that has begun."""
    with http.stream("GET", f"/adapters/{adapter}/events", **more) as stream:
        assert stream.status_code == 200
        lines = stream.iter_lines()
        assert next(lines) == "event: status"
        yield lines


def test_a_tenant_keeps_so_many_streams_and_waits_open(tiny: Base, redis_server: RedisServer) -> None:
    keys = Keys(redis.Redis.from_url(redis_server.url))
    own, other = ({"Authorization": f"Bearer {keys.create(tenant, '', ['adapt'])[1]}"} for tenant in ("acme", "globex"))
    with running(tiny, redis_server, max_streams=2) as http:
        adapter = queued(http, headers=own)
        with ExitStack() as streams:
            for _ in range(2):
                streams.enter_context(opened(http, adapter, headers=own))
            changed = {**BODY, "options": {"steps": 0, "seed": 1}}
            for refused in (
                http.get(f"/adapters/{adapter}/events", headers=own),
                http.post("/adapt", json=changed, headers={**own, "Prefer": "wait=1"}),
            ):
                assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1
                problem = refused.json()
                assert problem["type"] == "/problems/quota-exceeded"
                assert (problem["limit"], problem["most"], problem["used"]) == ("MAX_STREAMS", 2, 2)
            assert len(http.get("/adapters", headers=own).json()["adapters"]) == 1  # refused before anything was on record
            queued(http, headers={**other, "Prefer": "wait=0.1"})
            queued(http, headers=own)  # which waits for nothing
        deadline = time.monotonic() + LATE
        while http.post("/adapt", json=BODY, headers={**own, "Prefer": "wait=0.05"}).status_code == 429:
            assert time.monotonic() < deadline  # until the service sees that the streams are gone
        for _ in range(3):
            queued(http, headers={**own, "Prefer": "wait=0.05"})


def test_a_stream_ends_with_its_key(tiny: Base, redis_server: RedisServer) -> None:
    keys = Keys(redis.Redis.from_url(redis_server.url))
    with running(tiny, redis_server) as http:
        with opened(http, queued(http)) as unnamed:
            identity, whole, _ = keys.create("acme", "", ["adapt"])
            began = time.monotonic()
            list(unnamed)  # who came without a key needs one now
        own = {"Authorization": f"Bearer {whole}"}
        with opened(http, queued(http, headers=own), headers=own) as named:
            keys.revoke(identity)
            list(named)
        assert time.monotonic() - began < 2 * (KEY_CACHE_SECONDS + events.KEY_ASKED_SECONDS) + 2


def test_a_stream_has_a_longest_life_and_goes_on_after_it(
    tiny: Base, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LONGEST_SECONDS", 0.3)
    with running(tiny, redis_server) as http:
        adapter = queued(http)
        with opened(http, adapter) as lines:
            first = list(lines)
        assert json.loads(first[0].removeprefix("data: "))["status"] == "queued"
        last = next(line for line in first if line.startswith("id: ")).removeprefix("id: ")
        again = http.get(f"/adapters/{adapter}/events", headers={"Last-Event-ID": last})
        assert again.status_code == 200 and again.text == ""


def test_a_stream_whose_records_go_ends_with_one_warning(
    tiny: Base, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tiny, redis_server) as http, opened(http, queued(http)) as lines:
        redis_server.stop()
        list(lines)
        time.sleep(0.2)
    assert len([record for record in caplog.records if "a stream ends" in record.getMessage()]) == 1
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
