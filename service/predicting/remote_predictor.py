"""A predictor in a process of its own, as the routes see it: calls go over one connection, which is made again when it breaks."""

import asyncio
import itertools
import json
import logging
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from metatrain.models.base import Base
from service.errors import Overloaded, Unavailable
from service.predicting import wire
from service.predicting.predictor import Answer, WeightsKey
from service.settings import predictor_address

log = logging.getLogger(__name__)
_AGAIN_SECONDS, _OTHER_SECONDS = 0.5, 5.0
"""Until the next attempt, and until the one after a predictor that cannot be used."""
_SILENT_SECONDS = 5.0
"""Gauges come each second: who says nothing for so long is gone, whatever the socket looks like."""
_UNSENT_BYTES = 16 * 2**20
"""What may wait for a predictor that does not read."""


class RemotePredictor:
    """A Predictor, made and closed on the service's event loop; `forget` may be called from any thread.

    Calls that wait when the connection breaks fail with Unavailable: they change nothing, so a client may repeat them.
    """

    def __init__(self, base: Base, url: str) -> None:
        self._about, self._address = wire.about(base), predictor_address(url)
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count()
        self._waiting: dict[int, Future[Answer]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._gauges: dict[str, float] = {}
        self._connection = asyncio.create_task(self._stay_connected(), name="predictor-connection")

    def submit(self, weights: WeightsKey, texts: Sequence[str]) -> "Future[Answer]":
        if self._writer is None:
            raise Unavailable("the predictor is out of reach")
        if self._writer.transport.get_write_buffer_size() > _UNSENT_BYTES:
            raise Overloaded("the predictor does not take what it is sent", 2)
        number, future = next(self._numbers), Future[Answer]()
        self._waiting[number] = future
        future.add_done_callback(lambda done: self._cancel(number) if done.cancelled() else None)
        self._writer.write(wire.line(wire.call(number, weights, list(texts))))
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
        return self._writer is not None

    def gauges(self) -> dict[str, float]:
        return self._gauges

    def close(self) -> None:
        self._connection.cancel()

    async def _stay_connected(self) -> None:
        told = False
        while True:
            try:
                where = self._address
                if isinstance(where, str):
                    opened = asyncio.open_unix_connection(where, limit=wire.LINE_BYTES)
                else:
                    opened = asyncio.open_connection(*where, limit=wire.LINE_BYTES)
                reader, writer = await asyncio.wait_for(opened, 3)
                told = False
                try:
                    await self._talk(reader, writer)
                finally:
                    self._lost()
                    writer.close()
            except Exception as error:  # whatever the other end does, the next attempt may find a better one
                log.log(logging.DEBUG if told else logging.WARNING, "the predictor is out of reach: %s", type(error).__name__)
                told = True
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(wire.line({"about": self._about}))
        first = await _line(reader)
        if first["about"] != self._about:
            log.error("the predictor has another base model or precision: %s; this service has %s", first["about"], self._about)
            await asyncio.sleep(_OTHER_SECONDS)
            return
        self._gauges, self._writer = first["gauges"], writer
        while True:
            self._heard(await _line(reader))

    def _heard(self, document: dict[str, Any]) -> None:
        if "gauges" in document:
            self._gauges = document["gauges"]
            return
        number = document["answer" if "answer" in document else "error"]
        found = wire.answer_of(document) if "answer" in document else wire.error_of(document)
        future = self._waiting.pop(number, None)  # once it is understood: until then the end of the connection ends the call
        if future is None or not future.set_running_or_notify_cancel():
            return
        if isinstance(found, Answer):
            future.set_result(found)
        else:
            future.set_exception(found)

    def _lost(self) -> None:
        self._writer, self._gauges = None, {}
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if future.set_running_or_notify_cancel():
                future.set_exception(Unavailable("the predictor went before the answer"))


async def _line(reader: asyncio.StreamReader) -> Any:
    return json.loads(await asyncio.wait_for(reader.readuntil(b"\n"), _SILENT_SECONDS))
