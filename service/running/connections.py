"""Limit the number of connections, and the time that each may take with what uvicorn does not limit.

uvicorn closes idle connections (`timeout_keep_alive`) and limits the size of headers. It waits without end for headers that are
half sent, for a body that the application refused to read, and for a client that does not read its answer.
"""

import asyncio
import ipaddress
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum
from http import HTTPStatus
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.http.failed_keys import counted_address, unmapped_address
from worker.logs import fields

log = logging.getLogger(__name__)
UNREAD_BODY_SECONDS = 5.0
"""Time to send the rest of a body that was answered unread. A client that still sends could otherwise miss the answer."""
CLOSING_SECONDS = 5.0
"""Time for a client to read the rest of its answer once the connection closes."""
UNREAD_ANSWER_SECONDS = 30.0
"""Time within which a client has to read some of its answer."""
_LOG_SECONDS = 10.0


class OpenConnections:
    """Counts the open connections, in all and by address. Must be used on the event loop.

    Connections from `proxies`, which carry the requests of many clients, count only in all.
    """

    def __init__(self, most: int, most_of_address: int, proxies: Sequence[str]) -> None:
        self._most, self._most_of_address = most, most_of_address
        self._proxies = [ipaddress.ip_network(proxy) for proxy in proxies]
        self._by_address = Counter[str]()
        self._open = 0
        self._logged = -_LOG_SECONDS

    def admit(self, host: str) -> Callable[[], None] | None:
        """Count a connection from `host`. Return the function that counts it as closed.

        Returns None, and counts nothing, if the connection exceeds a limit.
        """
        address = "" if self._is_proxy(host) else counted_address(host)
        if self._open >= self._most or (address and self._by_address[address] >= self._most_of_address):
            self._log_refusal(address or host)
            return None
        self._open += 1
        self._by_address[address] += 1

        def release() -> None:
            self._open -= 1
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

        return release

    def _is_proxy(self, host: str) -> bool:
        if not self._proxies or not host:  # a client that has gone before it was accepted has no address
            return False
        address = ipaddress.ip_address(host)
        return any(address in network for network in self._proxies)

    def _log_refusal(self, address: str) -> None:
        if time.monotonic() - self._logged >= _LOG_SECONDS:
            self._logged = time.monotonic()
            with fields(address=address, connections=self._open):
                log.warning("a connection is refused: MAX_CONNECTIONS or MAX_CONNECTIONS_PER_ADDRESS is reached")


class _Awaited(Enum):
    """Says what a connection waits for with a time-out. A request that is being answered has none."""

    NOTHING = None
    HEADERS = "headers"
    UNREAD_BODY = "the rest of a body that nobody reads"
    CLOSED = "the end of the connection"


class LimitedConnection(H11Protocol):
    """An HTTP connection with limits. Use a subclass that `limited_connection` returns."""

    open_connections: ClassVar[OpenConnections]
    header_seconds: ClassVar[float]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._release: Callable[[], None] | None = None
        self._awaited = _Awaited.NOTHING
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.client is not None:  # on a socket for IPv6 and IPv4, an IPv4 client is ::ffff:a.b.c.d, which is in no IPv4 network
            self.client = (unmapped_address(self.client[0]), self.client[1])
        self._release = self.open_connections.admit(self.client[0] if self.client else "")
        if self._release is None:
            self._answer_and_close(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", "too many open connections", retry_after=2)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._await(_Awaited.NOTHING)
        self._stop_write_timer()
        if self._release is not None:
            self._release()
            self._release = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(UNREAD_ANSWER_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_write_timer()

    def send_400_response(self, msg: str) -> None:
        self._answer_and_close(HTTPStatus.BAD_REQUEST, "invalid-http", msg)

    def _watch(self) -> None:
        """Start, keep or stop the timer, according to what the connection waits for now."""
        if self.transport.is_closing():
            self._await(_Awaited.CLOSED)
        elif self.conn.their_state is h11.IDLE:
            # An idle connection has uvicorn's own timer, which the first byte of a request stops.
            idle = self.timeout_keep_alive_task is not None and not self.conn.trailing_data[0]
            self._await(_Awaited.NOTHING if idle else _Awaited.HEADERS)
        elif self.conn.their_state is h11.SEND_BODY and self.cycle is not None and self.cycle.response_complete:
            self._await(_Awaited.UNREAD_BODY)
        else:
            self._await(_Awaited.NOTHING)

    def _await(self, awaited: _Awaited) -> None:
        """Start the timer for `awaited`. It is not started again if the connection waits for that already."""
        if awaited is self._awaited:
            return
        self._awaited = awaited
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if awaited is not _Awaited.NOTHING:
            seconds = {
                _Awaited.HEADERS: self.header_seconds,
                _Awaited.UNREAD_BODY: UNREAD_BODY_SECONDS,
                _Awaited.CLOSED: CLOSING_SECONDS,
            }
            self._timer = self.loop.call_later(seconds[awaited], self._time_is_over)

    def _time_is_over(self) -> None:
        if self._awaited is _Awaited.CLOSED:
            self.transport.abort()
            return
        if self._awaited is _Awaited.HEADERS and self.conn.trailing_data[0]:
            detail = f"headers: expected all of them within {self.header_seconds:g} s"
            self._answer_and_close(HTTPStatus.REQUEST_TIMEOUT, "headers-too-slow", detail)
        else:
            self.transport.close()
        self._watch()

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _answer_and_close(self, status: HTTPStatus, kind: str, detail: str, retry_after: int | None = None) -> None:
        """Answer with a problem document, unless an answer has begun, and close the connection."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            document = {"type": f"/problems/{kind}", "title": status.phrase, "status": status.value, "detail": detail}
            body = json.dumps(document).encode()
            head = [
                f"HTTP/1.1 {status.value} {status.phrase}",
                "content-type: application/problem+json",
                f"content-length: {len(body)}",
                "cache-control: no-store",
                "x-content-type-options: nosniff",
                "connection: close",
                *([] if retry_after is None else [f"retry-after: {retry_after}"]),
            ]
            self.transport.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True  # the application must not answer a second time
            cycle.message_event.set()
        self.transport.close()


def limited_connection(open_connections: OpenConnections, header_seconds: float) -> type[LimitedConnection]:
    """Return the protocol class for the connections of one server, to be given to uvicorn as `http`."""
    values = {"open_connections": open_connections, "header_seconds": header_seconds}
    return type("LimitedConnection", (LimitedConnection,), values)
