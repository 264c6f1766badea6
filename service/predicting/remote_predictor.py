"""The client of a predictor in a separate process. It uses one connection and reopens it if it breaks."""

import asyncio
import itertools
import json
import logging
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from metatrain.models.description import BaseDescription
from service.errors import Overloaded, Unavailable
from service.predicting import wire
from service.predicting.interface import BATCH_AGE, Answer, WeightsKey
from service.settings import predictor_address

log = logging.getLogger(__name__)
_RECONNECT_SECONDS, _MISMATCH_SECONDS = 0.5, 5.0
"""Pause before each reconnection, and an additional pause if the predictor turned out to have another base model."""
_SILENCE_SECONDS = 5.0
"""Time without a message after which the connection counts as broken. Normally gauges arrive every second."""
_UNSENT_BYTES = 16 * 2**20
"""Calls are refused while more bytes than this wait to be sent, because the predictor does not read fast enough."""


class RemotePredictor:
    """A `Predictor` that sends its calls to a separate process.

    `hang_seconds`: how long calls may wait without the end of a batch before the predictor counts as hanging.

    Create and close it on the event loop; `forget` may be called from any thread. If the connection breaks, all unanswered calls
    fail with Unavailable. It is safe to retry them, because a prediction changes nothing.
    """

    def __init__(self, base: BaseDescription, url: str, hang_seconds: float = 30.0) -> None:
        self._about, self._address = wire.about(base), predictor_address(url)
        self._hang_seconds = hang_seconds
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count()
        self._waiting: dict[int, Future[Answer]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._gauges: dict[str, float] = {}
        self._stopping = False
        self._connection = asyncio.create_task(self._stay_connected(), name="predictor-connection")

    def submit(self, weights: WeightsKey, texts: Sequence[str], share: int = 1) -> "Future[Answer]":
        if self._writer is None:
            raise Unavailable("the predictor cannot be reached")
        if self._writer.transport.get_write_buffer_size() > _UNSENT_BYTES:
            raise Overloaded("the predictor does not read its calls fast enough", 2)
        number, future = next(self._numbers), Future[Answer]()
        self._waiting[number] = future
        future.add_done_callback(lambda done: self._cancel(number) if done.cancelled() else None)
        self._writer.write(wire.line(wire.call(number, weights, list(texts), share)))
        return future

    def _cancel(self, number: int) -> None:
        if self._waiting.pop(number, None) is not None:
            self._loop.call_soon_threadsafe(self._send, {"cancel": number})

    def forget(self, tenant: str, digest: str) -> None:
        self._loop.call_soon_threadsafe(self._send, {"forget": [tenant, digest]})

    def _send(self, document: dict[str, Any]) -> None:
        if self._writer is not None:
            self._writer.write(wire.line(document))

    def alive(self) -> bool:
        return self._writer is not None and not self._stopping and self._gauges.get(BATCH_AGE, 0.0) <= self._hang_seconds

    def needs_restart(self) -> bool:
        return False  # the predictor's process ends itself if it hangs; a restart of this one would not help

    def gauges(self) -> dict[str, float]:
        return self._gauges

    def close(self) -> None:
        self._connection.cancel()

    async def _stay_connected(self) -> None:
        warned = False
        while True:
            try:
                address = self._address
                if isinstance(address, str):
                    opening = asyncio.open_unix_connection(address, limit=wire.LINE_BYTES)
                else:
                    opening = asyncio.open_connection(*address, limit=wire.LINE_BYTES)
                reader, writer = await asyncio.wait_for(opening, 3)
                warned = False
                try:
                    await self._receive_messages(reader, writer)
                finally:
                    self._fail_waiting_calls()
                    writer.close()
            except Exception as error:  # no error of a connection may stop this loop, which reconnects
                log.log(logging.DEBUG if warned else logging.WARNING, "the predictor cannot be reached: %s", type(error).__name__)
                warned = True
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _receive_messages(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(wire.line({"about": self._about}))
        first = await _read_message(reader)
        if first["about"] != self._about:
            log.error("the predictor has another base model or precision: %s; this service has %s", first["about"], self._about)
            await asyncio.sleep(_MISMATCH_SECONDS)
            return
        self._handle_message(first)
        self._writer = writer
        while True:
            self._handle_message(await _read_message(reader))

    def _handle_message(self, document: dict[str, Any]) -> None:
        if "gauges" in document:
            self._gauges = document["gauges"]
            self._stopping = document.get("stopping", False)  # earlier predictors do not say it
            return
        number = document["answer" if "answer" in document else "error"]
        result = wire.answer_of(document) if "answer" in document else wire.error_of(document)
        # Removed only after parsing: if parsing fails, the connection closes, and that fails all calls that are still waiting.
        future = self._waiting.pop(number, None)
        if future is None or not future.set_running_or_notify_cancel():
            return
        if isinstance(result, Answer):
            future.set_result(result)
        else:
            future.set_exception(result)

    def _fail_waiting_calls(self) -> None:
        self._writer, self._gauges = None, {}
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if future.set_running_or_notify_cancel():
                future.set_exception(Unavailable("the connection to the predictor was lost before the answer"))


async def _read_message(reader: asyncio.StreamReader) -> Any:
    return json.loads(await asyncio.wait_for(reader.readuntil(b"\n"), _SILENCE_SECONDS))
