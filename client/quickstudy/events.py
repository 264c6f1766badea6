"""An adapter's events, over any number of connections: server-sent events where the service has them, else made of its states."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from quickstudy import calls, multi_step
from quickstudy.answers import IN_FLIGHT, Adapter, Status, read_as
from quickstudy.calls import Call, Named
from quickstudy.errors import NotFound, NotUnderstood, QuickstudyError, RateLimited, Unavailable, error_of, out_of_reach
from quickstudy.retries import Retries

_SILENCE_SECONDS = 45.0
"""Three of the service's signs of life; then the connection is taken for dead."""
_POLL_SECONDS, _POLL_MOST_SECONDS = 0.05, 1.0
"""Between two looks at a state: the first ones, and the last."""


@dataclass(frozen=True)
class StatusEvent:
    """The job changed hands."""

    id: str
    status: Status
    attempt: int


@dataclass(frozen=True)
class StepEvent:
    """The support loss before inner step `step`, from 1."""

    id: str
    step: int
    support_loss: float


@dataclass(frozen=True)
class EndEvent:
    """The last one: the job has ended."""

    id: str
    adapter: Adapter


Event = StatusEvent | StepEvent | EndEvent


class Reading:
    """What is known of one adapter's events so far: where to go on after a lost connection, and whether it is worth it.

    `within` seconds, from its making unless they end at `deadline`, are the most that it may take.
    """

    def __init__(self, name: Named, retries: Retries, within: float | None, deadline: float | None = None) -> None:
        self._name, self._retries, self._within = name, retries, within
        self.deadline = time.monotonic() + within if deadline is None and within is not None else deadline
        self._looks = 0
        self._call = calls.events(name)
        self._attempt = 0
        self._last_id: str | None = None
        self._status = "queued"
        self._stream = EventStream()
        self._seen: tuple[str, int, int] | None = None
        self.polls = False
        self.ended = False

    def request(self) -> dict[str, Any]:
        """What to open the stream with: goes on after the last event that came."""
        self._stream = EventStream()
        headers = dict(self._call.headers)
        if self._last_id is not None:
            headers["Last-Event-ID"] = self._last_id
        left = _SILENCE_SECONDS if self.deadline is None else max(0.01, min(_SILENCE_SECONDS, self.deadline - time.monotonic()))
        timeout = httpx.Timeout(10.0, read=left)
        return {"method": self._call.method, "url": self._call.path, "headers": headers, "timeout": timeout}

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that a piece of the stream completes. Raises NotReady past the deadline."""
        self._attempt = 0  # the service is there, whatever it says
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

    def pause(self, came: httpx.Response | httpx.TransportError) -> float:
        """Seconds until the next connection, after one that came to nothing or ended before the job did.

        Raises QuickstudyError where there is to be none.
        """
        self._check_deadline()
        error: QuickstudyError
        if isinstance(came, httpx.ReadTimeout):
            error = Unavailable(None, {"detail": "the events' connection gave no sign of life"})
        elif isinstance(came, httpx.TransportError):
            error = out_of_reach(came)
        elif came.is_success:
            error = Unavailable(came.status_code, {"detail": "the events ended before the job did"})
        else:
            error = error_of(came)
        if isinstance(error, NotFound) and self._last_id is None:
            self.polls = True  # whether the adapter or its events are not there, its state tells
            return 0.0
        if isinstance(error, RateLimited) and error.limit == "MAX_STREAMS":
            self.polls = True
            return 0.0
        pause = self._retries.pause(self._attempt, error)
        self._attempt += 1
        if pause is None:
            raise error
        return self._in_time(pause)

    def between_looks(self) -> float:
        """Seconds until the next look at the state."""
        self._looks += 1
        return self._in_time(min(_POLL_MOST_SECONDS, _POLL_SECONDS * (1 + self._looks / 5)))

    def poll(self) -> Call[Adapter]:
        return calls.adapter(self._name)

    def state(self, adapter: Adapter) -> Iterator[Event]:
        """What is new in a state: the events that a stream would have had."""
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
            raise multi_step.late(calls.name_of(self._name), self._status, self._within or 0.0)


class EventStream:
    """Bytes → (id, event, data), as the HTML standard has it. Lines end at line feeds alone: a JSON text may have any other
    break of lines in it, which `httpx.Response.iter_lines` would cut at."""

    def __init__(self) -> None:
        self._rest = b""
        self._id, self._kind = "", "message"
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[tuple[str, str, str]]:
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
    """None for a kind that this client does not know. Raises NotUnderstood."""
    if kind not in ("status", "step", "end"):
        return None
    try:
        content = json.loads(data)
    except ValueError:
        raise NotUnderstood(None, {"detail": f"event {kind}: its data are not JSON"}) from None
    if kind == "end":
        return EndEvent(identity, read_as(Adapter, content))
    own = {**content, "id": identity} if isinstance(content, Mapping) else content
    return read_as(StatusEvent, own) if kind == "status" else read_as(StepEvent, own)
