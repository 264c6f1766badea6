"""Requests that no client of this repository sends."""

import asyncio
import time

from metatrain.models.base import Base
from tests.conftest import RedisServer
from tests.service.test_shared_threads import client_of


def test_values_that_cannot_be_looked_up_are_invalid_and_no_internal_errors(tiny: Base, redis_server: RedisServer) -> None:
    async def scenario() -> None:
        async with client_of(tiny, redis_server) as http:
            head = {"Content-Type": "application/json"}
            body = b'{"initialization": "\\ud800", "support": [{"input": "a", "label": "x"}, {"input": "b", "label": "y"}]}'
            answer = await http.post("/adapt", content=body, headers=head)
            assert answer.status_code == 422 and "initialization: expected Unicode text" in answer.json()["detail"], answer.text
            for cursor in ("0-0", "0-1", "00000-7"):
                assert (await http.get("/audit", params={"cursor": cursor})).status_code == 422

    asyncio.run(scenario())


def test_the_openapi_document_is_encoded_once(tiny: Base, redis_server: RedisServer) -> None:
    """Everybody may ask for it without a key, so that it must cost about as much as `/healthz`."""

    async def scenario() -> None:
        async with client_of(tiny, redis_server) as http:

            async def seconds(path: str) -> float:
                began = time.perf_counter()
                for _ in range(40):
                    assert (await http.get(path)).status_code == 200
                return time.perf_counter() - began

            first = await http.get("/openapi.json")
            assert first.headers["content-type"] == "application/json" and len(first.content) > 50_000
            assert "/adapt" in first.json()["paths"]
            assert await seconds("/openapi.json") < 4 * await seconds("/healthz")

    asyncio.run(scenario())
