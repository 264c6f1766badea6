"""The callers and goals of `make bench-neighbours`, against a server of a few lines."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from benchmarks.neighbour_load import Order, held_bodies, predict
from benchmarks.neighbours import Figures, goals, quantile


@asynccontextmanager
async def server(*answers: str) -> AsyncIterator[tuple[str, list[int]]]:
    """Answer requests with `answers`, one after another, and all further ones with 200.

    Yields the URL and the list of the lengths of the bodies that arrived.
    """
    remaining, lengths = list(answers), list[int]()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        line = remaining.pop(0) if remaining else "200 OK"
        if line.startswith("200"):
            lengths.append(len(await reader.readexactly(length)))
        writer.write(f"HTTP/1.1 {line}\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        await writer.drain()
        writer.close()

    running = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with running:
        yield f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}", lengths


def test_a_refused_call_is_sent_again_after_the_stated_time() -> None:
    async def run() -> None:
        async with server("429 Too Many Requests\r\nRetry-After: 1") as (url, lengths):
            found = await predict(Order(url, "key", 1.3, "a", callers=1, inputs=3))
        assert found["statuses"][429] == 1 and found["statuses"][200] == len(lengths) > 0
        assert found["done"] == 3 * len(lengths)
        assert found["per_second"] <= found["done"] / 1.0  # the second of waiting is part of the time

    asyncio.run(run())


def test_a_held_body_ends_with_the_answer_or_the_time() -> None:
    async def run() -> None:
        async with server("413 Too Large\r\nRetry-After: 1") as (url, lengths):
            found = await held_bodies(Order(url, "key", 2.0, "a", callers=1, body_bytes=300_000))
        assert dict(found["statuses"]) == {413: 1, -1: 1}  # refused once, then held until the end
        assert not lengths

    asyncio.run(run())


def figures(**changes: float) -> Figures:
    values = {"rest": 100.0, "peak": 100.0, "done_per_second": 10.0, "batch": 0.0, "job": 0.0, **changes}
    return Figures(predict=[values.pop("ms", 10.0)] * 20, adapt=[50.0], refused=0, unanswered=0, unit="rows", statuses={}, **values)


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, []),
        ({"ms": 37.0, "batch": 7.0}, []),
        ({"ms": 37.0, "batch": 6.9}, ["predict p95, ms"]),
        ({"peak": 150.0}, []),
        ({"peak": 151.0}, ["memory, MB"]),
        ({"done_per_second": 8.9}, ["rows a second"]),
    ],
)
def test_each_goal_is_missed_by_what_it_is_about(changes: dict[str, float], missed: list[str]) -> None:
    reached = goals(figures(**changes), figures(), figures(), bounds_mb=20.0)
    assert [title for title, _, _, met in reached if not met] == missed


def test_the_quantiles() -> None:
    assert [quantile([1.0, 2.0, 3.0, 4.0], share) for share in (0.0, 0.5, 0.95, 1.0)] == [1.0, 3.0, 4.0, 4.0]
