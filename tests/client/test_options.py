"""Options of calls: NumPy scalars are numbers, and what cannot be sent is named."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from quickstudy import AsyncClient, Client, Invalid

from tests.client.scripted import ADAPTED, ADAPTER, Reply, serving

PAIRS = [("close it", "close"), ("how much", "ask")]


def test_numpy_scalars_are_sent_as_numbers() -> None:
    answer = {"adapter_id": "a1", "digest": "d", "predictions": [{"label": "x", "probabilities": {"x": 1.0}}], "truncated": []}
    options: Any = {
        "steps": np.int64(3),
        "seed": np.uint32(7),
        "label_words": np.bool_(True),
        "ttl_seconds": np.array(60),
        "tags": np.array(["a", "b"]),
    }
    one: Any = np.int32(1)
    with serving(Reply(202, ADAPTED), Reply(200, answer)) as server, Client(server.url) as quickstudy:
        quickstudy.adapt(PAIRS, wait=0, **options)
        quickstudy.predict("a1", ["hello"], top_k=one)
    body = server.requests[0].body
    assert body["options"] == {"steps": 3, "seed": 7, "label_words": True}
    assert body["ttl_seconds"] == 60 and body["tags"] == ["a", "b"] and server.requests[1].body["top_k"] == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda client: client.adapt(PAIRS, tags="ab"), "tags: expected a list of texts, got 'ab'"),
        (lambda client: client.update("a1", tags="ab"), "tags: expected a list of texts, got 'ab'"),
        (lambda client: client.adapt(PAIRS, tags=7), "tags: expected a list of texts, got 7"),
        (lambda client: client.update("a1", tags=None), "tags: expected a list of texts, got nothing"),
        (lambda client: client.adapt(PAIRS, tags=["a", "\ud83d"]), "tags[1]: expected Unicode text, got half of a surrogate pair"),
        (lambda client: client.adapt(PAIRS, name="\ud83d"), "name: expected Unicode text, got half of a surrogate pair"),
        (lambda client: client.update("a1", name="\ud83d"), "name: expected Unicode text, got half of a surrogate pair"),
        (lambda client: list(client.adapters(name="\ud83d")), "name: expected Unicode text, got half of a surrogate pair"),
        (lambda client: client.adapter("\ud83d"), "name: expected Unicode text, got half of a surrogate pair"),
        (lambda client: client.set_alias("a", "\ud83d"), "adapter_id: expected Unicode text, got half of a surrogate pair"),
        (lambda client: client.predict("\ud83d", "hello"), "adapter_id: expected Unicode text, got half of a surrogate pair"),
        (
            lambda client: client.adapt(PAIRS, steps=np.arange(2)),
            "options.steps: expected a value of JSON, got a value of type ndarray",
        ),
        (lambda client: client.adapt(PAIRS, ttl_seconds=float("nan")), "ttl_seconds: expected a value of JSON, got NaN"),
        (lambda client: client.predict("a1", ["a"], top_k={1}), "top_k: expected a value of JSON, got a value of type set"),
    ],
)
def test_an_option_that_cannot_be_sent_is_named(call: Callable[[Client], Any], message: str) -> None:
    with serving() as server, Client(server.url) as quickstudy, pytest.raises(Invalid) as error:
        call(quickstudy)
    assert str(error.value) == message and not server.requests


SECONDS: Any = np.float32(30)


def test_seconds_may_be_numpy_scalars() -> None:
    replies = [Reply(202, ADAPTED), Reply(200, ADAPTER), Reply(202, ADAPTED)]
    with serving(*replies) as server, Client(server.url, timeout=SECONDS) as quickstudy:
        made = quickstudy.adapt(PAIRS, wait=SECONDS)
        assert quickstudy.wait(made, SECONDS).status == "ready"
        asyncio.run(_adapt(server.url))


async def _adapt(url: str) -> None:
    async with AsyncClient(url, timeout=SECONDS) as quickstudy:
        await quickstudy.adapt(PAIRS, wait=SECONDS)
