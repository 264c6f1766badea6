"""`quickstudy predictor`: the predictor as a process of its own, for any number of services that hold no adapters themselves."""

import asyncio
import contextlib
import json
import logging
import os
import signal
from concurrent.futures import Future
from typing import Any

from service import wire
from service.predictor import Answer, InProcessPredictor, Wanted
from service.settings import predictor_address

log = logging.getLogger(__name__)
_GAUGES_SECONDS = 1.0


async def serve(predictor: InProcessPredictor, url: str) -> None:
    """Answer calls on `url` until SIGINT or SIGTERM; what has come by then is answered first. Raises ValueError, OSError."""
    where = predictor_address(url)
    connections = _Connections(predictor)
    if isinstance(where, str):
        before = os.umask(0o177)  # the socket is its owner's alone
        try:
            server = await asyncio.start_unix_server(connections.handle, where, limit=wire.LINE_BYTES)
        finally:
            os.umask(before)
    else:
        server = await asyncio.start_server(connections.handle, *where, limit=wire.LINE_BYTES)
    stop = asyncio.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    log.info("predictor on %s", url)
    await stop.wait()
    server.close()
    await asyncio.get_running_loop().run_in_executor(None, predictor.close)
    await connections.close()


class _Connections:
    def __init__(self, predictor: InProcessPredictor) -> None:
        self._predictor, self._about = predictor, wire.about(predictor.base)
        self._writers: set[asyncio.StreamWriter] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One service, until it goes; its calls then give up their places."""
        waiting: dict[int, Future[Answer]] = {}
        self._writers.add(writer)
        writer.write(wire.line({"about": self._about, "gauges": self._predictor.gauges()}))
        telling = asyncio.create_task(self._tell(writer))
        try:
            while True:
                self._heard(json.loads(await reader.readuntil(b"\n")), waiting, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except (asyncio.LimitOverrunError, ValueError, KeyError, TypeError) as error:
            log.warning("a service said what is not understood (%s) and is let go", type(error).__name__)
        finally:
            telling.cancel()
            for future in list(waiting.values()):
                future.cancel()
            self._writers.discard(writer)
            writer.close()

    def _heard(self, document: dict[str, Any], waiting: dict[int, "Future[Answer]"], writer: asyncio.StreamWriter) -> None:
        if "call" in document:
            self._start(document["call"], Wanted(**document["wanted"]), document["texts"], waiting, writer)
        elif "cancel" in document:
            if (future := waiting.pop(document["cancel"], None)) is not None:
                future.cancel()
        elif "forget" in document:
            self._predictor.forget(*document["forget"])

    def _start(
        self, number: int, wanted: Wanted, texts: list[str], waiting: dict[int, "Future[Answer]"], writer: asyncio.StreamWriter
    ) -> None:
        loop = asyncio.get_running_loop()

        def answered(future: "Future[Answer]") -> None:
            if waiting.pop(number, None) is None or future.cancelled():
                return
            problem = future.exception()
            writer.write(wire.line(wire.answer(number, future.result()) if problem is None else wire.error(number, problem)))

        try:
            future = self._predictor.submit(wanted, texts)
        except Exception as problem:  # whatever it is, the service is told
            writer.write(wire.line(wire.error(number, problem)))
            return
        waiting[number] = future
        future.add_done_callback(lambda done: loop.call_soon_threadsafe(answered, done))

    async def _tell(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await asyncio.sleep(_GAUGES_SECONDS)
            writer.write(wire.line({"gauges": self._predictor.gauges()}))

    async def close(self) -> None:
        for writer in list(self._writers):
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            writer.close()
