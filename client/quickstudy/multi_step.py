"""The logic of client methods that send several requests or retry, as generators without I/O.

A generator yields each step, a `Call` to send or a `Pause`, and receives the reply to it from `generator.send`. `Client` and
`AsyncClient` only perform these steps, so that both behave alike.
"""

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, TypeVar

import httpx

from quickstudy import calls
from quickstudy.answers import IN_FLIGHT, Adaptation, Adapter, Predictions, Readiness
from quickstudy.calls import AdapterRef, Call
from quickstudy.errors import Invalid, NotFound, NotReady, QuickstudyError, error_of, out_of_reach
from quickstudy.examples import list_of_inputs
from quickstudy.retries import NEVER_SENT, Retries

T = TypeVar("T")


@dataclass(frozen=True)
class Pause:
    """A step that a generator yields to its client: sleep for `seconds`."""

    seconds: float


Reply = httpx.Response | httpx.TransportError | None
"""The result of one step: a response or a transport error for a call, None for a pause."""
Flow = Generator[Call[Any] | Pause, Reply, T]
"""A generator that yields the steps of a client method, and returns the method's result of type T."""


def send(call: Call[T], retries: Retries, deadline: float | None = None) -> Flow[T]:
    """Send a call, retry it as `retries` allows, and return its answer.

    `deadline` is a value of `time.monotonic()`; None means no deadline. Raises the QuickstudyError of the last attempt, or NotReady
    if the next attempt would be after the deadline.
    """
    answer_lost = False
    for attempt in count():
        reply = yield call
        assert reply is not None
        error: QuickstudyError
        if isinstance(reply, httpx.TransportError):
            error = out_of_reach(reply)
            answer_lost = answer_lost or not isinstance(reply, NEVER_SENT)
        elif reply.is_success:
            return call.answer(reply)
        else:
            error = error_of(reply)
        if answer_lost and call.is_deletion and isinstance(error, NotFound):
            return call.read(None)
        pause = retries.pause(attempt, error, repeatable=call.repeatable)
        if pause is None:
            raise error
        left = pause if deadline is None else max(0.0, deadline - time.monotonic())
        yield Pause(min(pause, left))
        if pause > left:
            raise NotReady(409, {**error.problem, "detail": f"not ready in time: {error}", "adapter_status": "unknown"}) from error
    raise AssertionError("unreachable")


def fetch_if_ready(name: AdapterRef, deadline: float, seconds: float, retries: Retries) -> Flow[Adapter | None]:
    """Return the adapter if it is ready, or None if its job has not ended and the deadline has not passed.

    Raises NotReady if the adapter has another status, or if the job has not ended by the deadline. `seconds` appears only in the
    error message.
    """
    adapter = yield from send(calls.adapter(name), retries, deadline)
    if adapter.status not in IN_FLIGHT:
        return require_ready(adapter)
    if time.monotonic() >= deadline:
        raise not_ready_in_time(adapter.adapter_id, adapter.status, seconds)
    return None


def require_ready(adapter: Adapter) -> Adapter:
    """Return an adapter whose job has ended. Raises NotReady if its status is not `ready`."""
    if adapter.status == "ready":
        return adapter
    detail = adapter.error or f"adapter {adapter.adapter_id} is {adapter.status}"
    raise NotReady(409, _not_ready(detail, adapter.adapter_id, adapter.status))


def not_ready_in_time(identity: str, status: str, seconds: float) -> NotReady:
    """Return the error for an adapter whose job has not ended within `seconds`."""
    return NotReady(409, _not_ready(f"adapter {identity} is still {status} after {seconds:g} s", identity, status))


def _not_ready(detail: str, identity: str, status: str) -> dict[str, Any]:
    return {"title": "Adapter not ready", "detail": detail, "adapter_id": identity, "adapter_status": status}


def with_status_of(answer: Adaptation, adapter: Adapter) -> Adaptation:
    """Return a copy of `answer` with the status of `adapter`, which was read later."""
    return replace(answer, status=adapter.status)


class PartSize:
    """The largest number of inputs to send in one predict call, stored in `rows`.

    `rows` starts at the service's default limit. `predict` reduces it if the service refuses a call as too large.
    """

    def __init__(self) -> None:
        self.rows = 256


def predict(name: AdapterRef, inputs: Sequence[str], top_k: int | None, size: PartSize, retries: Retries) -> Flow[Predictions]:
    """Return predictions for any number of inputs, in as many calls as the service's limits require.

    The same adapter predicts all inputs: if `name` is an alias, later calls use the adapter id from the first answer, even if the
    alias has moved. Raises Invalid if the service rejects an input; the error's `row` is the position in `inputs`.
    """
    answers: list[Predictions] = []
    position = 0
    inputs = list_of_inputs(inputs, "inputs")
    while position < len(inputs) or not answers:
        part = inputs[position : position + size.rows]
        try:
            call = calls.predict(answers[0].adapter_id if answers else name, part, top_k)
            answer = yield from send(call, retries)
        except Invalid as error:
            if len(part) > 1 and error.too_many("inputs"):
                size.rows = len(part) // 2
                continue
            raise (error.with_row_offset(position) if position else error) from None
        answers.append(replace(answer, truncated=tuple(position + i for i in answer.truncated)))
        position += len(part)
    return replace(
        answers[0],
        predictions=tuple(prediction for answer in answers for prediction in answer),
        truncated=tuple(i for answer in answers for i in answer.truncated),
    )


def check_ready() -> Flow[Readiness]:
    """Ask once whether the service is ready. A service that cannot be reached is reported as not ready."""
    reply = yield calls.ready()
    assert reply is not None
    if isinstance(reply, httpx.TransportError):
        return Readiness(False, ("service",))
    if reply.is_success:
        return Readiness(True)
    missing = error_of(reply).problem.get("missing")
    return Readiness(False, tuple(map(str, missing)) if isinstance(missing, list) else ())
