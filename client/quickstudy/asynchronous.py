"""The same client for asyncio: what it does, and raises, is said in `blocking`."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

import httpx

from quickstudy import calls, multi_step
from quickstudy.answers import (
    Adaptation,
    Adapter,
    Alias,
    AliasMove,
    DryRun,
    Initialization,
    Prediction,
    Predictions,
    Readiness,
    Score,
    Usage,
)
from quickstudy.calls import AdapterFilters, AdaptOptions, AliasCondition, Call, Changes, LearnOptions, Named, Pairs
from quickstudy.connection import Connection
from quickstudy.events import EndEvent, Event, Reading
from quickstudy.multi_step import Flow, Pause, Reply
from quickstudy.retries import RETRIES

T = TypeVar("T")


class AsyncClient:
    """`async with AsyncClient("http://localhost:8000") as quickstudy: …`; everything else as `Client`."""

    def __init__(
        self, url: str = "http://localhost:8000", *, api_key: str | None = None, timeout: float = 90.0, retries: int = RETRIES
    ) -> None:
        self._connection = Connection(url, api_key, timeout, retries)
        self._retries, self._parts = self._connection.retries, multi_step.PartSize()
        self._http = httpx.AsyncClient(**self._connection.settings)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def adapt(
        self,
        support: Pairs,
        *,
        wait: float = 30.0,
        on_progress: Callable[[Event], None] | None = None,
        **options: Unpack[AdaptOptions],
    ) -> Adaptation:
        return await self._made(lambda patience: calls.adapt(support, options, patience), wait, on_progress)

    async def add_examples(
        self,
        parent: Named,
        support: Pairs,
        *,
        wait: float = 30.0,
        on_progress: Callable[[Event], None] | None = None,
        **options: Unpack[LearnOptions],
    ) -> Adaptation:
        return await self._made(lambda patience: calls.add_examples(parent, support, options, patience), wait, on_progress)

    async def dry_run(self, support: Pairs, **options: Unpack[AdaptOptions]) -> DryRun:
        return await self._answer(calls.dry_run(support, options))

    async def wait(self, adapter: Named, seconds: float = 30.0, on_progress: Callable[[Event], None] | None = None) -> Adapter:
        deadline = time.monotonic() + seconds
        if on_progress is None:
            there = await self._run(multi_step.ended(adapter, deadline, seconds, self._retries))
            if there is not None:
                return there
        async with aclosing(self._events(Reading(adapter, self._retries, seconds, deadline))) as events:
            async for event in events:
                if on_progress is not None:
                    on_progress(event)
                if isinstance(event, EndEvent):
                    return multi_step.ready(event.adapter)
        raise AssertionError("unreachable")

    def events(self, adapter: Named, *, within: float | None = None) -> AsyncGenerator[Event, None]:
        return self._events(Reading(adapter, self._retries, within))

    async def _events(self, reading: Reading) -> AsyncGenerator[Event, None]:
        while not reading.ended and not reading.polls:
            came: httpx.Response | httpx.TransportError
            try:
                async with self._http.stream(**reading.request()) as came:
                    if came.is_success:
                        async for chunk in came.aiter_bytes():
                            for item in reading.feed(chunk):
                                yield item
                    else:
                        await came.aread()
            except httpx.TransportError as error:
                came = error
            if not reading.ended:
                await asyncio.sleep(reading.pause(came))
        while not reading.ended:
            for item in reading.state(await self._answer(reading.poll(), reading.deadline)):
                yield item
            if not reading.ended:
                await asyncio.sleep(reading.between_looks())

    @overload  # a string is a sequence of strings too, and is not meant as one
    async def predict(self, adapter: Named, inputs: str, *, top_k: int | None = None) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    async def predict(self, adapter: Named, inputs: Sequence[str], *, top_k: int | None = None) -> Predictions: ...
    async def predict(self, adapter: Named, inputs: str | Sequence[str], *, top_k: int | None = None) -> Prediction | Predictions:
        if isinstance(inputs, str):
            return (await self._run(multi_step.predicted(adapter, [inputs], top_k, self._parts, self._retries)))[0]
        return await self._run(multi_step.predicted(adapter, inputs, top_k, self._parts, self._retries))

    async def score(self, adapter: Named, examples: Pairs) -> Score:
        return await self._answer(calls.score(adapter, examples))

    async def adapter(self, adapter: Named) -> Adapter:
        return await self._answer(calls.adapter(adapter))

    async def adapters(self, **filters: Unpack[AdapterFilters]) -> AsyncIterator[Adapter]:
        cursor: str | None = None
        while True:
            page = await self._answer(calls.adapters(filters, cursor))
            for item in page.adapters:
                yield item
            cursor = page.next_cursor
            if cursor is None:
                return

    async def update(self, adapter: Named, **changes: Unpack[Changes]) -> Adapter:
        return await self._answer(calls.update(adapter, changes))

    async def delete(self, adapter: Named) -> None:
        await self._answer(calls.delete(adapter))

    async def pin(self, adapter: Named) -> None:
        await self._answer(calls.pin(adapter, "PUT"))

    async def unpin(self, adapter: Named) -> None:
        await self._answer(calls.pin(adapter, "DELETE"))

    async def aliases(self) -> AsyncIterator[Alias]:
        cursor: str | None = None
        while True:
            page = await self._answer(calls.aliases(cursor))
            for item in page.aliases:
                yield item
            cursor = page.next_cursor
            if cursor is None:
                return

    async def set_alias(self, alias: str, adapter: Named, **condition: Unpack[AliasCondition]) -> AliasMove:
        return await self._answer(calls.set_alias(alias, adapter, condition))

    async def delete_alias(self, alias: str) -> None:
        await self._answer(calls.delete_alias(alias))

    async def initializations(self) -> tuple[Initialization, ...]:
        return await self._answer(calls.initializations())

    async def usage(self, tenant: str | None = None) -> Usage:
        return await self._answer(calls.usage(tenant))

    async def ready(self) -> Readiness:
        return await self._run(multi_step.readiness())

    async def _made(
        self, call: Callable[[float], Call[Adaptation]], wait: float, on_progress: Callable[[Event], None] | None
    ) -> Adaptation:
        deadline = time.monotonic() + wait
        answer = await self._answer(call(0.0 if on_progress else wait), deadline if wait > 0 else None)
        if wait <= 0 or (answer.status == "ready" and on_progress is None):
            return answer
        return multi_step.made(answer, await self.wait(answer, max(0.0, deadline - time.monotonic()), on_progress))

    async def _answer(self, call: Call[T], deadline: float | None = None) -> T:
        return await self._run(multi_step.answered(call, self._retries, deadline))

    async def _run(self, flow: Flow[T]) -> T:
        reply: Reply = None
        while True:
            try:
                asked = flow.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result
            reply = await self._perform(asked)

    async def _perform(self, asked: Call[Any] | Pause) -> Reply:
        if isinstance(asked, Pause):
            await asyncio.sleep(asked.seconds)
            return None
        try:
            return await self._http.request(**self._connection.request(asked))
        except httpx.TransportError as error:
            return error
