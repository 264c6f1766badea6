"""Read the events of an adapter's job, and reconnect if a connection is lost.

The service sends server-sent events. If it does not offer a stream, the client polls the adapter's state and derives the events.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from quickstudy import calls, multi_step
from quickstudy.answers import IN_FLIGHT, Adapter, Status, read_as
from quickstudy.calls import AdapterRef, Call
from quickstudy.errors import NotFound, NotUnderstood, QuickstudyError, RateLimited, Unavailable, error_of, out_of_reach
from quickstudy.retries import Retries

_SILENCE_SECONDS = 45.0
"""Seconds without data after which a connection is considered dead: three times the interval of keep-alive lines."""
_SHORTEST_POLL_SECONDS, _LONGEST_POLL_SECONDS = 0.05, 1.0
"""Pause between two polls of an adapter's state: it starts near the first value and grows to the second."""


@dataclass(frozen=True)
class StatusEvent:
    """The job has a new status, or a new attempt has started; attempts count from 1."""

    id: str
    status: Status
    attempt: int


@dataclass(frozen=True)
class StepEvent:
    """The support loss before inner step `step`, counted from 1."""

    id: str
    step: int
    support_loss: float


@dataclass(frozen=True)
class EndEvent:
    """The last event: the job has ended, and `adapter` is its final state."""

    id: str
    adapter: Adapter


Event = StatusEvent | StepEvent | EndEvent


class EventReader:
    """The state of one adapter's event stream, without I/O.

    It keeps the last event id, to resume from if the connection is lost, and decides whether and when to connect again.

    Arguments:
        within: time limit in seconds; None means no limit. If `deadline` is given, `within` appears only in the error message.
        deadline: the time at which to stop, a value of `time.monotonic()`; None means `within` seconds from now.

    Attributes:
        polling: True if the service offers no stream, so that the caller must poll the adapter's state instead.
        ended: True once the last event has been read.
    """

    def __init__(self, name: AdapterRef, retries: Retries, within: float | None, deadline: float | None = None) -> None:
        within = None if within is None else float(within)  # a scalar of NumPy is a float, too
        self._name, self._retries, self._within = name, retries, within
        self.deadline = time.monotonic() + within if deadline is None and within is not None else deadline
        self._polls = 0
        self._call = calls.events(name)
        self._attempt = 0
        self._last_id: str | None = None
        self._status = "queued"
        self._stream = EventStream()
        self._seen: tuple[str, int, int] | None = None
        self.polling = False
        self.ended = False

    def request(self) -> dict[str, Any]:
        """Return keyword arguments for `httpx.Client.stream` that request the events after the last one read."""
        self._stream = EventStream()
        headers = dict(self._call.headers)
        if self._last_id is not None:
            headers["Last-Event-ID"] = self._last_id
        left = _SILENCE_SECONDS if self.deadline is None else max(0.01, min(_SILENCE_SECONDS, self.deadline - time.monotonic()))
        timeout = httpx.Timeout(10.0, read=left)
        return {"method": self._call.method, "url": self._call.path, "headers": headers, "timeout": timeout}

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Parse a chunk of the stream, and yield the events that it completes.

        Raises NotReady after the deadline.
        """
        self._attempt = 0  # the service answers, so the count of failed attempts starts over
        for identity, kind, data in self._stream.feed(chunk):
            self._last_id = identity
            event = _event(identity, kind, data)
            if event is None:
                continue
            if isinstance(event, StatusEvent):
                self._status = event.status
            self.ended = isinstance(event, EndEvent)
            yield event
        self._check_deadline()

    def pause(self, outcome: httpx.Response | httpx.TransportError) -> float:
        """Return the seconds to wait before reconnecting, after a connection failed or ended early.

        `outcome`: the response or the transport error of that connection. Sets `polling` if the service offers no stream. Raises a
        QuickstudyError for `outcome` if the client must not reconnect, and NotReady after the deadline.
        """
        self._check_deadline()
        error: QuickstudyError
        if isinstance(outcome, httpx.ReadTimeout):
            error = Unavailable(None, {"detail": f"the event stream was silent for {_SILENCE_SECONDS:g} s"})
        elif isinstance(outcome, httpx.TransportError):
            error = out_of_reach(outcome)
        elif outcome.is_success:
            error = Unavailable(outcome.status_code, {"detail": "the event stream ended before the job did"})
        else:
            error = error_of(outcome)
        if isinstance(error, NotFound) and self._last_id is None:
            self.polling = True  # polling shows whether the adapter or only its stream is missing
            return 0.0
        if isinstance(error, RateLimited) and error.limit == "MAX_STREAMS":
            self.polling = True
            return 0.0
        pause = self._retries.pause(self._attempt, error)
        self._attempt += 1
        if pause is None:
            raise error
        return self._in_time(pause)

    def poll_pause(self) -> float:
        """Return the seconds to wait before the next poll of the adapter's state."""
        self._polls += 1
        return self._in_time(min(_LONGEST_POLL_SECONDS, _SHORTEST_POLL_SECONDS * (1 + self._polls / 5)))

    def poll(self) -> Call[Adapter]:
        """Return the call that reads the adapter's state."""
        return calls.adapter(self._name)

    def from_state(self, adapter: Adapter) -> Iterator[Event]:
        """Derive the events since the last poll from the adapter's state, and yield them with empty ids.

        Raises NotReady after the deadline.
        """
        last_status, last_attempt, steps = self._seen or ("", 0, 0)
        if adapter.attempt != last_attempt:
            steps = 0
        if (adapter.status, adapter.attempt) != (last_status, last_attempt):
            yield StatusEvent("", adapter.status, adapter.attempt)
        for step in range(steps, len(adapter.support_loss)):
            yield StepEvent("", step + 1, adapter.support_loss[step])
        self._status, self._seen = adapter.status, (adapter.status, adapter.attempt, len(adapter.support_loss))
        if adapter.status not in IN_FLIGHT:
            self.ended = True
            yield EndEvent("", adapter)
            return
        self._check_deadline()

    def _in_time(self, pause: float) -> float:
        return pause if self.deadline is None else min(pause, max(0.0, self.deadline - time.monotonic()))

    def _check_deadline(self) -> None:
        if not self.ended and self.deadline is not None and time.monotonic() >= self.deadline:
            raise multi_step.not_ready_in_time(calls.name_of(self._name), self._status, self._within or 0.0)


class EventStream:
    """A parser of server-sent events: bytes to (id, event, data), following the HTML standard.

    It splits lines only at line feeds. `httpx.Response.iter_lines` would also split at other line breaks, which JSON may contain.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._id, self._kind = "", "message"
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[tuple[str, str, str]]:
        """Yield the events that a chunk completes, and keep its incomplete rest for the next chunk."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            name, _, value = line.removesuffix(b"\r").decode("utf-8", "replace").partition(":")
            value = value.removeprefix(" ")
            if name == "id":
                self._id = value
            elif name == "event":
                self._kind = value
            elif name == "data":
                self._data.append(value)
            elif not name and not value and self._data:
                yield self._id, self._kind, "\n".join(self._data)
                self._kind, self._data = "message", []


def _event(identity: str, kind: str, data: str) -> Event | None:
    """Parse one event. Return None for a kind that this client does not know. Raises NotUnderstood."""
    if kind not in ("status", "step", "end"):
        return None
    try:
        content = json.loads(data)
    except ValueError:
        raise NotUnderstood(None, {"detail": f"event {kind}: expected JSON as its data"}) from None
    if kind == "end":
        return EndEvent(identity, read_as(Adapter, content))
    fields = {**content, "id": identity} if isinstance(content, Mapping) else content
    return read_as(StatusEvent, fields) if kind == "status" else read_as(StepEvent, fields)
