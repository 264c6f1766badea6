"""The client that blocks."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
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


class Client:
    """`with Client("http://localhost:8000") as quickstudy: …`

    `api_key` is QUICKSTUDY_API_KEY of the environment where none is given. A call that gets no answer within `timeout` seconds is
    given up; one that is refused for now, or whose connection breaks, has up to `retries` more attempts (see `Retries`). Every
    method raises QuickstudyError (see `errors`).
    """

    def __init__(
        self, url: str = "http://localhost:8000", *, api_key: str | None = None, timeout: float = 90.0, retries: int = RETRIES
    ) -> None:
        self._connection = Connection(url, api_key, timeout, retries)
        self._retries, self._parts = self._connection.retries, multi_step.PartSize()
        self._http = httpx.Client(**self._connection.settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def adapt(
        self,
        support: Pairs,
        *,
        wait: float = 30.0,
        on_progress: Callable[[Event], None] | None = None,
        **options: Unpack[AdaptOptions],
    ) -> Adaptation:
        """Learn from (input, label) pairs, and return once the adapter is ready; at once, whatever its status, with `wait=0`.
        `on_progress` is told of every event on the way.

        Raises NotReady where the job fails, or is not ready after `wait` seconds.
        """
        return self._made(lambda patience: calls.adapt(support, options, patience), wait, on_progress)

    def add_examples(
        self,
        parent: Named,
        support: Pairs,
        *,
        wait: float = 30.0,
        on_progress: Callable[[Event], None] | None = None,
        **options: Unpack[LearnOptions],
    ) -> Adaptation:
        """As `adapt`: a new adapter, from the parent's examples and these; the parent stays as it is."""
        return self._made(lambda patience: calls.add_examples(parent, support, options, patience), wait, on_progress)

    def dry_run(self, support: Pairs, **options: Unpack[AdaptOptions]) -> DryRun:
        """What `adapt` would do, and what is odd about the examples; nothing is made."""
        return self._answer(calls.dry_run(support, options))

    def wait(self, adapter: Named, seconds: float = 30.0, on_progress: Callable[[Event], None] | None = None) -> Adapter:
        """The adapter, once it is ready. Raises NotReady where it ends otherwise, or not within `seconds`."""
        deadline = time.monotonic() + seconds
        if on_progress is None:
            there = self._run(multi_step.ended(adapter, deadline, seconds, self._retries))
            if there is not None:
                return there
        with closing(self._events(Reading(adapter, self._retries, seconds, deadline))) as events:
            for event in events:
                if on_progress is not None:
                    on_progress(event)
                if isinstance(event, EndEvent):
                    return multi_step.ready(event.adapter)
        raise AssertionError("unreachable")

    def events(self, adapter: Named, *, within: float | None = None) -> Generator[Event, None, None]:
        """Everything that happens to an adapter, from its start to its end; connections that are lost are taken up again where
        they were. Raises NotReady where it has not ended after `within` seconds."""
        return self._events(Reading(adapter, self._retries, within))

    def _events(self, reading: Reading) -> Generator[Event, None, None]:
        while not reading.ended and not reading.polls:
            came: httpx.Response | httpx.TransportError
            try:
                with self._http.stream(**reading.request()) as came:
                    if came.is_success:
                        for chunk in came.iter_bytes():
                            yield from reading.feed(chunk)
                    else:
                        came.read()
            except httpx.TransportError as error:
                came = error
            if not reading.ended:
                time.sleep(reading.pause(came))
        while not reading.ended:
            yield from reading.state(self._answer(reading.poll(), reading.deadline))
            if not reading.ended:
                time.sleep(reading.between_looks())

    @overload  # a string is a sequence of strings too, and is not meant as one
    def predict(self, adapter: Named, inputs: str, *, top_k: int | None = None) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, adapter: Named, inputs: Sequence[str], *, top_k: int | None = None) -> Predictions: ...
    def predict(self, adapter: Named, inputs: str | Sequence[str], *, top_k: int | None = None) -> Prediction | Predictions:
        """One prediction for one input; a sequence of them for several, however many, in order. `top_k`: the probabilities of the
        most probable labels only."""
        if isinstance(inputs, str):
            return self._run(multi_step.predicted(adapter, [inputs], top_k, self._parts, self._retries))[0]
        return self._run(multi_step.predicted(adapter, inputs, top_k, self._parts, self._retries))

    def score(self, adapter: Named, examples: Pairs) -> Score:
        """How well it predicts (input, label) pairs."""
        return self._answer(calls.score(adapter, examples))

    def adapter(self, adapter: Named) -> Adapter:
        return self._answer(calls.adapter(adapter))

    def adapters(self, **filters: Unpack[AdapterFilters]) -> Iterator[Adapter]:
        """All of them, newest first."""
        cursor: str | None = None
        while True:
            page = self._answer(calls.adapters(filters, cursor))
            yield from page.adapters
            cursor = page.next_cursor
            if cursor is None:
                return

    def update(self, adapter: Named, **changes: Unpack[Changes]) -> Adapter:
        """Give it another `name` or other `tags`."""
        return self._answer(calls.update(adapter, changes))

    def delete(self, adapter: Named) -> None:
        """Delete its weights, record and examples, and cancel what runs."""
        self._answer(calls.delete(adapter))

    def pin(self, adapter: Named) -> None:
        """Keep it from expiring and from eviction."""
        self._answer(calls.pin(adapter, "PUT"))

    def unpin(self, adapter: Named) -> None:
        self._answer(calls.pin(adapter, "DELETE"))

    def aliases(self) -> Iterator[Alias]:
        cursor: str | None = None
        while True:
            page = self._answer(calls.aliases(cursor))
            yield from page.aliases
            cursor = page.next_cursor
            if cursor is None:
                return

    def set_alias(self, alias: str, adapter: Named, **condition: Unpack[AliasCondition]) -> AliasMove:
        """Have an alias point at an adapter. With `expected`, raises Conflict where it does not point there just before."""
        return self._answer(calls.set_alias(alias, adapter, condition))

    def delete_alias(self, alias: str) -> None:
        self._answer(calls.delete_alias(alias))

    def initializations(self) -> tuple[Initialization, ...]:
        """What the service can adapt from."""
        return self._answer(calls.initializations())

    def usage(self, tenant: str | None = None) -> Usage:
        """What the key's tenant has used; of another tenant, where the key may ask."""
        return self._answer(calls.usage(tenant))

    def ready(self) -> Readiness:
        """Whether the service answers and has all it needs, now."""
        return self._run(multi_step.readiness())

    def _made(
        self, call: Callable[[float], Call[Adaptation]], wait: float, on_progress: Callable[[Event], None] | None
    ) -> Adaptation:
        deadline = time.monotonic() + wait
        answer = self._answer(call(0.0 if on_progress else wait), deadline if wait > 0 else None)
        if wait <= 0 or (answer.status == "ready" and on_progress is None):
            return answer
        return multi_step.made(answer, self.wait(answer, max(0.0, deadline - time.monotonic()), on_progress))

    def _answer(self, call: Call[T], deadline: float | None = None) -> T:
        return self._run(multi_step.answered(call, self._retries, deadline))

    def _run(self, flow: Flow[T]) -> T:
        reply: Reply = None
        while True:
            try:
                asked = flow.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result
            reply = self._perform(asked)

    def _perform(self, asked: Call[Any] | Pause) -> Reply:
        if isinstance(asked, Pause):
            time.sleep(asked.seconds)
            return None
        try:
            return self._http.request(**self._connection.request(asked))
        except httpx.TransportError as error:
            return error
