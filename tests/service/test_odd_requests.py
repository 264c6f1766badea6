"""Requests that no client of this repository sends."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

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


def test_the_openapi_document_is_encoded_once(tiny: Base, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody may ask for it without a key, so that it must cost about as much as `/healthz`."""
    encoded: list[object] = []

    def dumps(document: Any, **options: Any) -> str:
        encoded.append(document)
        return json.dumps(document, **options)

    monkeypatch.setattr("service.http.docs_page.json", SimpleNamespace(dumps=dumps))

    async def scenario() -> None:
        async with client_of(tiny, redis_server) as http:
            answers = [await http.get("/openapi.json") for _ in range(3)]
            assert {answer.headers["content-type"] for answer in answers} == {"application/json"}
            assert len(encoded) == 1 and all(answer.json() == encoded[0] for answer in answers)
            assert "/adapt" in answers[0].json()["paths"]

    asyncio.run(scenario())
