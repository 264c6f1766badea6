"""What a client does in more than one step, without doing it: generators that ask for a call to be sent, or for a pause, and are
sent what came of it. `Client` and `AsyncClient` differ in who does the asking's work, and in nothing else."""

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, TypeVar

import httpx

from quickstudy import calls
from quickstudy.answers import IN_FLIGHT, Adaptation, Adapter, Predictions, Readiness
from quickstudy.calls import Call, Named
from quickstudy.errors import Invalid, NotFound, NotReady, QuickstudyError, error_of, out_of_reach
from quickstudy.retries import NEVER_SENT, Retries

T = TypeVar("T")


@dataclass(frozen=True)
class Pause:
    seconds: float


Reply = httpx.Response | httpx.TransportError | None
"""A response or the error for a call, None for a pause."""
Flow = Generator[Call[Any] | Pause, Reply, T]


def answered(call: Call[T], retries: Retries, deadline: float | None = None) -> Flow[T]:
    """A call's answer, after as many attempts as it may take. Raises QuickstudyError: NotReady where the next attempt would be past
    the deadline."""
    lost = False
    for attempt in count():
        reply = yield call
        assert reply is not None
        error: QuickstudyError
        if isinstance(reply, httpx.TransportError):
            error = out_of_reach(reply)
            lost = lost or not isinstance(reply, NEVER_SENT)
        elif reply.is_success:
            return call.answer(reply)
        else:
            error = error_of(reply)
        if lost and call.removes and isinstance(error, NotFound):
            return call.read(None)
        pause = retries.pause(attempt, error, repeatable=call.repeatable)
        if pause is None:
            raise error
        left = pause if deadline is None else max(0.0, deadline - time.monotonic())
        yield Pause(min(pause, left))
        if pause > left:
            raise NotReady(409, {**error.problem, "detail": f"not ready in time: {error}", "adapter_status": "unknown"}) from error
    raise AssertionError("unreachable")


def ended(name: Named, deadline: float, seconds: float, retries: Retries) -> Flow[Adapter | None]:
    """The adapter if it is ready by now, None while its job goes on. Raises NotReady where it ended otherwise, or goes on past the
    deadline."""
    adapter = yield from answered(calls.adapter(name), retries, deadline)
    if adapter.status not in IN_FLIGHT:
        return ready(adapter)
    if time.monotonic() >= deadline:
        raise late(adapter.adapter_id, adapter.status, seconds)
    return None


def ready(adapter: Adapter) -> Adapter:
    """Raises NotReady where the adapter's job has ended and it is not ready."""
    if adapter.status == "ready":
        return adapter
    detail = adapter.error or f"adapter {adapter.adapter_id} is {adapter.status}"
    raise NotReady(409, _not_ready(detail, adapter.adapter_id, adapter.status))


def late(identity: str, status: str, seconds: float) -> NotReady:
    return NotReady(409, _not_ready(f"adapter {identity} is still {status} after {seconds:g} s", identity, status))


def _not_ready(detail: str, identity: str, status: str) -> dict[str, Any]:
    return {"title": "Adapter not ready", "detail": detail, "adapter_id": identity, "adapter_status": status}


def made(answer: Adaptation, adapter: Adapter) -> Adaptation:
    """The answer to a request, brought up to date by the adapter that it made."""
    return replace(answer, status=adapter.status)


class PartSize:
    """How many inputs go into one call: the service's default limit, until it has refused as many."""

    def __init__(self) -> None:
        self.rows = 256


def predicted(name: Named, inputs: Sequence[str], top_k: int | None, size: PartSize, retries: Retries) -> Flow[Predictions]:
    """Predictions for any number of inputs, in as many calls as the service's limits take. All are of one adapter: an alias that is
    moved meanwhile moves between two of our calls, not within one."""
    done: list[Predictions] = []
    position = 0
    while position < len(inputs) or not done:
        part = inputs[position : position + size.rows]
        try:
            call = calls.predict(done[0].adapter_id if done else name, part, top_k)
            answer = yield from answered(call, retries)
        except Invalid as error:
            if len(part) > 1 and error.too_many("inputs"):
                size.rows = len(part) // 2
                continue
            raise (error.moved(position) if position else error) from None
        done.append(replace(answer, truncated=tuple(position + i for i in answer.truncated)))
        position += len(part)
    return replace(
        done[0],
        predictions=tuple(prediction for answer in done for prediction in answer),
        truncated=tuple(i for answer in done for i in answer.truncated),
    )


def readiness() -> Flow[Readiness]:
    """One attempt; who is out of reach is not ready."""

    reply = yield calls.ready()
    assert reply is not None
    if isinstance(reply, httpx.TransportError):
        return Readiness(False, ("service",))
    if reply.is_success:
        return Readiness(True)
    missing = error_of(reply).problem.get("missing")
    return Readiness(False, tuple(map(str, missing)) if isinstance(missing, list) else ())
