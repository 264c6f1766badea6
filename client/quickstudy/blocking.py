"""The blocking client."""

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


class Client:
    """A blocking client of one Quickstudy service. Use it as a context manager, or call `close`.

    Arguments:
        url: the base URL of the service. It contains a path only if a proxy adds one.
        api_key: None reads QUICKSTUDY_API_KEY from the environment; an empty string sends no key.
        timeout: seconds to wait for an answer before a call fails. `adapt` and `add_examples` add their `wait` to it.
        retries: number of further attempts if the service refuses a call temporarily or the connection fails (see `Retries`).

    An adapter argument is an adapter id, or an object that has one, as returned by `adapt`, `add_examples`, `wait` or `adapter`.

    Raises ValueError if `url` or `api_key` is malformed. Every method raises QuickstudyError if the service refuses the call or
    does not answer; `quickstudy.errors` lists the subclasses. A method raises ValueError for a string that cannot name an adapter.

    Example::

        from quickstudy import Client

        with Client("http://localhost:8000") as quickstudy:
            adapter = quickstudy.adapt([("When is breakfast?", "dining"), ("The wifi is down", "wifi")])
            print(quickstudy.predict(adapter, "until when can I eat?").label)
    """

    def __init__(
        self, url: str = "http://localhost:8000", *, api_key: str | None = None, timeout: float = 90.0, retries: int = RETRIES
    ) -> None:
        self._connection = Connection(url, api_key, timeout, retries)
        self._retries, self._part_size = self._connection.retries, multi_step.PartSize()
        self._http = httpx.Client(**self._connection.settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections. The client cannot be used afterwards."""
        self._http.close()

    def adapt(
        self,
        support: Examples,
        *,
        wait: float = 30.0,
        on_progress: Callable[[Event], None] | None = None,
        **options: Unpack[AdaptOptions],
    ) -> Adaptation:
        """Create an adapter from labelled examples and wait until it is ready.

        If the same examples and options are sent again, the result is the same adapter.

        Arguments:
            support: pairs (text, label), mappings with `text` or `input` and `label`, rows of a data frame, or a data frame.
            wait: seconds to wait for the adapter; 0 returns immediately, with its current status.
            on_progress: called with every event of the job while waiting.
            options: see `AdaptOptions`. The service has defaults for options that are not given.

        Raises Invalid if the service rejects an example or an option, RateLimited if a limit of the tenant is reached, and NotReady
        if the job fails or is not ready after `wait` seconds. A job that is not ready in time continues in the service. To wait
        longer, call `wait` with the adapter's id.

        Example::

            pairs = [("When is breakfast?", "dining"), ("The wifi is down", "wifi")]
            adapter = quickstudy.adapt(pairs, name="front desk", label_words=True)
            print(adapter.adapter_id, adapter.status)
            for notice in adapter.warnings:
                print(notice.row, notice.message)
        """
        return self._adapt(lambda wait_seconds: calls.adapt(support, options, wait_seconds), wait, on_progress)

    def add_examples(
        self,
        parent: AdapterRef,
        support: Examples,
        *,
        wait: float = 30.0,
        on_progress: Callable[[Event], None] | None = None,
        **options: Unpack[LearnOptions],
    ) -> Adaptation:
        """Create a new adapter from the examples of `parent` and further ones. The parent does not change.

        For `support`, `wait` and `on_progress` see `adapt`; for the options and their defaults see `LearnOptions`. Raises the same
        errors as `adapt`, and NotFound if there is no such parent.

        Example::

            grown = quickstudy.add_examples(adapter, [("Where do I park?", "parking")])
        """
        return self._adapt(lambda wait_seconds: calls.add_examples(parent, support, options, wait_seconds), wait, on_progress)

    def dry_run(self, support: Examples, **options: Unpack[AdaptOptions]) -> DryRun:
        """Check examples without creating anything: return what `adapt` would create, and warnings.

        Raises Invalid if the service would reject the same call of `adapt`.

        Example::

            for notice in quickstudy.dry_run(pairs).warnings:
                print(notice.field, notice.message)
        """
        return self._answer(calls.dry_run(support, options))

    def wait(self, adapter: AdapterRef, seconds: float = 30.0, on_progress: Callable[[Event], None] | None = None) -> Adapter:
        """Wait until an adapter is ready and return it.

        `on_progress` is called with every event of the job. Raises NotReady if the job ends with another status or the adapter is
        not ready after `seconds`, and NotFound if there is no such adapter.

        Example::

            started = quickstudy.adapt(pairs, wait=0)
            adapter = quickstudy.wait(started, seconds=120)
        """
        seconds = float(seconds)  # a scalar of NumPy is a float, too
        deadline = time.monotonic() + seconds
        if on_progress is None:
            finished = self._run(multi_step.fetch_if_ready(adapter, deadline, seconds, self._retries))
            if finished is not None:
                return finished
        with closing(self._events(EventReader(adapter, self._retries, seconds, deadline))) as events:
            for event in events:
                if on_progress is not None:
                    on_progress(event)
                if isinstance(event, EndEvent):
                    return multi_step.require_ready(event.adapter)
        raise AssertionError("unreachable")

    def events(self, adapter: AdapterRef, *, within: float | None = None) -> Generator[Event, None, None]:
        """Yield every event of an adapter's job, from its start to its end. The last one is an EndEvent.

        If the connection is lost, the client reconnects and continues after the last event. `within` is a limit in seconds from
        this call; None means no limit. Raises NotReady if the job has not ended after `within` seconds, and NotFound if there is no
        such adapter.

        Example::

            for event in quickstudy.events(adapter):
                print(event)
        """
        return self._events(EventReader(adapter, self._retries, within))

    def _events(self, reader: EventReader) -> Generator[Event, None, None]:
        while not reader.ended and not reader.polling:
            outcome: httpx.Response | httpx.TransportError
            try:
                with self._http.stream(**reader.request()) as outcome:
                    if outcome.is_success:
                        for chunk in outcome.iter_bytes():
                            yield from reader.feed(chunk)
                    else:
                        outcome.read()
            except httpx.TransportError as error:
                outcome = error
            if not reader.ended:
                time.sleep(reader.pause(outcome))
        while not reader.ended:
            yield from reader.from_state(self._answer(reader.poll(), reader.deadline))
            if not reader.ended:
                time.sleep(reader.poll_pause())

    @overload  # a str is also a Sequence[str], but here it means one input
    def predict(self, adapter: AdapterRef, inputs: str, *, top_k: int | None = None) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, adapter: AdapterRef, inputs: Sequence[str], *, top_k: int | None = None) -> Predictions: ...
    def predict(self, adapter: AdapterRef, inputs: str | Sequence[str], *, top_k: int | None = None) -> Prediction | Predictions:
        """Predict the label of one input, or of each of several inputs.

        A single string returns one Prediction. A sequence of strings returns Predictions, in the order of the inputs. It may have
        any length: the client sends it in parts that fit the service's limits. The same adapter predicts all parts.

        Arguments:
            adapter: an adapter, an adapter id, or an alias.
            top_k: return the probabilities of only the `top_k` most probable labels; None returns all of them.

        Raises NotReady if the adapter is not ready, NotFound if there is no such adapter or alias, and Invalid for an input that
        the service rejects; its `row` is the input's position.

        Example::

            for prediction in quickstudy.predict(adapter, ["until when can I eat?", "no internet in my room"]):
                print(prediction.label, prediction.probability)
        """
        if isinstance(inputs, str):
            return self._run(multi_step.predict(adapter, [inputs], top_k, self._part_size, self._retries))[0]
        return self._run(multi_step.predict(adapter, inputs, top_k, self._part_size, self._retries))

    def score(self, adapter: AdapterRef, examples: Examples) -> Score:
        """Predict the labels of labelled examples, as in `adapt`, and return the accuracy and other scores.

        Raises NotReady if the adapter is not ready, and Invalid for an example that the service rejects.

        Example::

            print(quickstudy.score(adapter, [("any free rooms?", "booking")]).accuracy)
        """
        return self._answer(calls.score(adapter, examples))

    def adapter(self, adapter: AdapterRef) -> Adapter:
        """Return the current state of an adapter. Raises NotFound if there is no such adapter."""
        return self._answer(calls.adapter(adapter))

    def adapters(self, **filters: Unpack[AdapterFilters]) -> Iterator[Adapter]:
        """Yield the adapters of the API key's tenant that match all given filters, newest first.

        Example::

            ready = [adapter.adapter_id for adapter in quickstudy.adapters(status="ready", tag="production")]
        """
        cursor: str | None = None
        while True:
            page = self._answer(calls.adapters(filters, cursor))
            yield from page.adapters
            cursor = page.next_cursor
            if cursor is None:
                return

    def update(self, adapter: AdapterRef, **changes: Unpack[Changes]) -> Adapter:
        """Change an adapter's `name` or `tags` and return its new state.

        `name=None` removes the name, and `tags` replaces all tags. If one of them is not given, it does not change. Raises NotFound
        if there is no such adapter.
        """
        return self._answer(calls.update(adapter, changes))

    def delete(self, adapter: AdapterRef) -> None:
        """Delete an adapter's weights, record and examples, and cancel its job if one is running.

        Raises NotFound if there is no such adapter, and Conflict if aliases point at it.
        """
        self._answer(calls.delete(adapter))

    def pin(self, adapter: AdapterRef) -> None:
        """Protect an adapter from expiry and eviction. Raises NotReady if it has expired already."""
        self._answer(calls.pin(adapter, "PUT"))

    def unpin(self, adapter: AdapterRef) -> None:
        """Undo `pin`: the adapter can expire and be evicted again. Its time to live restarts."""
        self._answer(calls.pin(adapter, "DELETE"))

    def aliases(self) -> Iterator[Alias]:
        """Yield all aliases of the API key's tenant."""
        cursor: str | None = None
        while True:
            page = self._answer(calls.aliases(cursor))
            yield from page.aliases
            cursor = page.next_cursor
            if cursor is None:
                return

    def alias(self, alias: str) -> AliasDetail:
        """Return an alias with its history. Raises NotFound if there is no such alias."""
        return self._answer(calls.alias(alias))

    def roll_back_alias(self, alias: str) -> AliasMove:
        """Point an alias at the adapter that it pointed at before the current one.

        Adapters that were deleted, failed or have expired are passed over. Another call goes further back. The call is not retried
        if its answer is lost. Raises NotFound if there is no such alias, and Conflict if no earlier adapter is usable.
        """
        return self._answer(calls.roll_back_alias(alias))

    def set_alias(self, alias: str, adapter: AdapterRef, **condition: Unpack[AliasCondition]) -> AliasMove:
        """Point an alias at an adapter, creating the alias if there is none.

        With `expected`, the alias is set only if it currently points at that adapter, and with `expected=None` only if it does not
        exist yet. Otherwise raises Conflict. A call with `expected` is not retried if its answer is lost, because the first attempt
        may have succeeded.

        Example::

            quickstudy.set_alias("front-desk.live", new_adapter, expected=old_adapter)
        """
        return self._answer(calls.set_alias(alias, adapter, condition))

    def delete_alias(self, alias: str) -> None:
        """Delete an alias, but not its adapter. Raises NotFound if there is no such alias."""
        self._answer(calls.delete_alias(alias))

    def initializations(self) -> tuple[Initialization, ...]:
        """Return the initializations that the service can adapt from."""
        return self._answer(calls.initializations())

    def usage(self, tenant: str | None = None) -> Usage:
        """Return the usage and limits of a tenant. None means the API key's own tenant.

        Raises Unauthorised if the key has no access to the usage of `tenant`.
        """
        return self._answer(calls.usage(tenant))

    def audit(self, action: str | None = None) -> Iterator[AuditEntry]:
        """Yield the changes of the tenant's keys, adapters, aliases and limits, newest first.

        `action`: only changes of this kind, such as `alias.moved`. Raises Unauthorised if the key lacks the scope `admin`.

        Example::

            for change in quickstudy.audit("adapter.deleted"):
                print(change.time, change.subject, change.actor.kind, change.actor.id)
        """
        cursor: str | None = None
        while True:
            page = self._answer(calls.audit(action, cursor))
            yield from page.entries
            cursor = page.next_cursor
            if cursor is None:
                return

    def ready(self) -> Readiness:
        """Return whether the service accepts traffic now, and if not, which of its parts are missing.

        Sends one request, without a retry. A service that cannot be reached is reported as not ready, without an error.
        """
        return self._run(multi_step.check_ready())

    def _adapt(
        self, call: Callable[[float], Call[Adaptation]], wait: float, on_progress: Callable[[Event], None] | None
    ) -> Adaptation:
        wait = float(wait)
        deadline = time.monotonic() + wait
        answer = self._answer(call(0.0 if on_progress else wait), deadline if wait > 0 else None)
        if wait <= 0 or (answer.status == "ready" and on_progress is None):
            return answer
        return multi_step.with_status_of(answer, self.wait(answer, max(0.0, deadline - time.monotonic()), on_progress))

    def _answer(self, call: Call[T], deadline: float | None = None) -> T:
        return self._run(multi_step.send(call, self._retries, deadline))

    def _run(self, flow: Flow[T]) -> T:
        reply: Reply = None
        while True:
            try:
                step = flow.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result
            reply = self._perform(step)

    def _perform(self, step: Call[Any] | Pause) -> Reply:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        try:
            return self._http.request(**self._connection.request(step))
        except httpx.TransportError as error:
            return error
