"""The asyncio client. It has the same methods as `blocking.Client`, which documents them in full."""

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
    AliasDetail,
    AliasMove,
    AuditEntry,
    DryRun,
    Initialization,
    Prediction,
    Predictions,
    Readiness,
    Score,
    Usage,
)
from quickstudy.calls import AdapterFilters, AdapterRef, AdaptOptions, AliasCondition, Call, Changes, LearnOptions
from quickstudy.connection import Connection
from quickstudy.events import EndEvent, Event, EventReader
from quickstudy.examples import Examples
from quickstudy.multi_step import Flow, Pause, Reply
from quickstudy.retries import RETRIES

T = TypeVar("T")


class AsyncClient:
    """An asyncio client of one Quickstudy service. Use it with `async with`, or await `aclose`.

    Arguments, methods and errors are the same as for `Client`. Await the methods, but iterate over `events`, `adapters`, `aliases`
    and `audit` with `async for`. `on_progress` is a plain function that is called in the event loop, so it must not block.

    Example::

        import asyncio

        from quickstudy import AsyncClient


        async def main() -> None:
            async with AsyncClient("http://localhost:8000") as quickstudy:
                adapter = await quickstudy.adapt([("When is breakfast?", "dining"), ("The wifi is down", "wifi")])
                print(await quickstudy.predict(adapter, "until when can I eat?"))


        asyncio.run(main())
    """

    def __init__(
        self, url: str = "http://localhost:8000", *, api_key: str | None = None, timeout: float = 90.0, retries: int = RETRIES
    ) -> None:
        self._connection = Connection(url, api_key, timeout, retries)
        self._retries, self._part_size = self._connection.retries, multi_step.PartSize()
        self._http = httpx.AsyncClient(**self._connection.settings)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections. The client cannot be used afterwards."""
        await self._http.aclose()

    async def adapt(
        self,
        support: Examples,
        *,
        wait: float = 30.0,
        on_progress: Callable[[Event], None] | None = None,
        **options: Unpack[AdaptOptions],
    ) -> Adaptation:
        """Create an adapter from labelled examples and wait up to `wait` seconds until it is ready.

        See `Client.adapt` for the arguments and errors.

        Example::

            adapter = await quickstudy.adapt(pairs, name="front desk", label_words=True)
        """
        return await self._adapt(lambda wait_seconds: calls.adapt(support, options, wait_seconds), wait, on_progress)

    async def add_examples(
        self,
        parent: AdapterRef,
        support: Examples,
        *,
        wait: float = 30.0,
        on_progress: Callable[[Event], None] | None = None,
        **options: Unpack[LearnOptions],
    ) -> Adaptation:
        """Create a new adapter from the examples of `parent` and further ones. See `Client.add_examples`.

        Example::

            grown = await quickstudy.add_examples(adapter, [("Where do I park?", "parking")])
        """
        return await self._adapt(lambda wait_seconds: calls.add_examples(parent, support, options, wait_seconds), wait, on_progress)

    async def dry_run(self, support: Examples, **options: Unpack[AdaptOptions]) -> DryRun:
        """Check examples: return what `adapt` would create, and warnings. See `Client.dry_run`."""
        return await self._answer(calls.dry_run(support, options))

    async def wait(self, adapter: AdapterRef, seconds: float = 30.0, on_progress: Callable[[Event], None] | None = None) -> Adapter:
        """Wait up to `seconds` until an adapter is ready, and return it. See `Client.wait`."""
        seconds = float(seconds)  # a scalar of NumPy is a float, too
        deadline = time.monotonic() + seconds
        if on_progress is None:
            finished = await self._run(multi_step.fetch_if_ready(adapter, deadline, seconds, self._retries))
            if finished is not None:
                return finished
        async with aclosing(self._events(EventReader(adapter, self._retries, seconds, deadline))) as events:
            async for event in events:
                if on_progress is not None:
                    on_progress(event)
                if isinstance(event, EndEvent):
                    return multi_step.require_ready(event.adapter)
        raise AssertionError("unreachable")

    def events(self, adapter: AdapterRef, *, within: float | None = None) -> AsyncGenerator[Event, None]:
        """Yield every event of an adapter's job; the last one is an EndEvent. See `Client.events`.

        Example::

            async for event in quickstudy.events(adapter):
                print(event)
        """
        return self._events(EventReader(adapter, self._retries, within))

    async def _events(self, reader: EventReader) -> AsyncGenerator[Event, None]:
        while not reader.ended and not reader.polling:
            outcome: httpx.Response | httpx.TransportError
            try:
                async with self._http.stream(**reader.request()) as outcome:
                    if outcome.is_success:
                        async for chunk in outcome.aiter_bytes():
                            for item in reader.feed(chunk):
                                yield item
                    else:
                        await outcome.aread()
            except httpx.TransportError as error:
                outcome = error
            if not reader.ended:
                await asyncio.sleep(reader.pause(outcome))
        while not reader.ended:
            for item in reader.from_state(await self._answer(reader.poll(), reader.deadline)):
                yield item
            if not reader.ended:
                await asyncio.sleep(reader.poll_pause())

    @overload  # a str is also a Sequence[str], but here it means one input
    async def predict(self, adapter: AdapterRef, inputs: str, *, top_k: int | None = None) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    async def predict(self, adapter: AdapterRef, inputs: Sequence[str], *, top_k: int | None = None) -> Predictions: ...
    async def predict(
        self, adapter: AdapterRef, inputs: str | Sequence[str], *, top_k: int | None = None
    ) -> Prediction | Predictions:
        """Predict the label of one input, or of each of several inputs. See `Client.predict`.

        Example::

            for prediction in await quickstudy.predict(adapter, ["until when can I eat?", "no internet in my room"]):
                print(prediction.label, prediction.probability)
        """
        if isinstance(inputs, str):
            return (await self._run(multi_step.predict(adapter, [inputs], top_k, self._part_size, self._retries)))[0]
        return await self._run(multi_step.predict(adapter, inputs, top_k, self._part_size, self._retries))

    async def score(self, adapter: AdapterRef, examples: Examples) -> Score:
        """Predict the labels of labelled examples, and return the scores. See `Client.score`."""
        return await self._answer(calls.score(adapter, examples))

    async def adapter(self, adapter: AdapterRef) -> Adapter:
        """Return the current state of an adapter. Raises NotFound if there is no such adapter."""
        return await self._answer(calls.adapter(adapter))

    async def adapters(self, **filters: Unpack[AdapterFilters]) -> AsyncIterator[Adapter]:
        """Yield the adapters of the API key's tenant that match all given filters, newest first.

        Example::

            ready = [adapter.adapter_id async for adapter in quickstudy.adapters(status="ready")]
        """
        cursor: str | None = None
        while True:
            page = await self._answer(calls.adapters(filters, cursor))
            for item in page.adapters:
                yield item
            cursor = page.next_cursor
            if cursor is None:
                return

    async def update(self, adapter: AdapterRef, **changes: Unpack[Changes]) -> Adapter:
        """Change an adapter's `name` or `tags` and return its new state. See `Client.update`."""
        return await self._answer(calls.update(adapter, changes))

    async def delete(self, adapter: AdapterRef) -> None:
        """Delete an adapter's weights, record and examples. Raises Conflict if aliases point at it."""
        await self._answer(calls.delete(adapter))

    async def pin(self, adapter: AdapterRef) -> None:
        """Protect an adapter from expiry and eviction. Raises NotReady if it has expired already."""
        await self._answer(calls.pin(adapter, "PUT"))

    async def unpin(self, adapter: AdapterRef) -> None:
        """Undo `pin`: the adapter can expire and be evicted again. Its time to live restarts."""
        await self._answer(calls.pin(adapter, "DELETE"))

    async def aliases(self) -> AsyncIterator[Alias]:
        """Yield all aliases of the API key's tenant."""
        cursor: str | None = None
        while True:
            page = await self._answer(calls.aliases(cursor))
            for item in page.aliases:
                yield item
            cursor = page.next_cursor
            if cursor is None:
                return

    async def alias(self, alias: str) -> AliasDetail:
        """Return an alias with its history. Raises NotFound if there is no such alias."""
        return await self._answer(calls.alias(alias))

    async def roll_back_alias(self, alias: str) -> AliasMove:
        """Point an alias at the adapter that it pointed at before. See `Client.roll_back_alias`."""
        return await self._answer(calls.roll_back_alias(alias))

    async def set_alias(self, alias: str, adapter: AdapterRef, **condition: Unpack[AliasCondition]) -> AliasMove:
        """Point an alias at an adapter, creating the alias if there is none. See `Client.set_alias`."""
        return await self._answer(calls.set_alias(alias, adapter, condition))

    async def delete_alias(self, alias: str) -> None:
        """Delete an alias, but not its adapter. Raises NotFound if there is no such alias."""
        await self._answer(calls.delete_alias(alias))

    async def initializations(self) -> tuple[Initialization, ...]:
        """Return the initializations that the service can adapt from."""
        return await self._answer(calls.initializations())

    async def usage(self, tenant: str | None = None) -> Usage:
        """Return the usage and limits of a tenant. None means the API key's own tenant."""
        return await self._answer(calls.usage(tenant))

    async def audit(self, action: str | None = None) -> AsyncIterator[AuditEntry]:
        """Yield the changes of the tenant's keys, adapters, aliases and limits, newest first."""
        cursor: str | None = None
        while True:
            page = await self._answer(calls.audit(action, cursor))
            for item in page.entries:
                yield item
            cursor = page.next_cursor
            if cursor is None:
                return

    async def ready(self) -> Readiness:
        """Return whether the service accepts traffic now. See `Client.ready`."""
        return await self._run(multi_step.check_ready())

    async def _adapt(
        self, call: Callable[[float], Call[Adaptation]], wait: float, on_progress: Callable[[Event], None] | None
    ) -> Adaptation:
        wait = float(wait)
        deadline = time.monotonic() + wait
        answer = await self._answer(call(0.0 if on_progress else wait), deadline if wait > 0 else None)
        if wait <= 0 or (answer.status == "ready" and on_progress is None):
            return answer
        return multi_step.with_status_of(answer, await self.wait(answer, max(0.0, deadline - time.monotonic()), on_progress))

    async def _answer(self, call: Call[T], deadline: float | None = None) -> T:
        return await self._run(multi_step.send(call, self._retries, deadline))

    async def _run(self, flow: Flow[T]) -> T:
        reply: Reply = None
        while True:
            try:
                step = flow.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result
            reply = await self._perform(step)

    async def _perform(self, step: Call[Any] | Pause) -> Reply:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        try:
            return await self._http.request(**self._connection.request(step))
        except httpx.TransportError as error:
            return error
