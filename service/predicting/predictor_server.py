"""The server of `quickstudy predictor`: one predictor process for any number of services."""

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from service.errors import ServiceError, Unavailable
from service.predicting import healthcheck, wire
from service.predicting.interface import Answer, WeightsKey
from service.predicting.predictor import InProcessPredictor
from service.predicting.progress import end_hung_process
from service.settings import predictor_address
from worker.logs import places

log = logging.getLogger(__name__)
_GAUGES_SECONDS = 1.0
_HELLO_SECONDS = 5.0
_DRAIN_SECONDS = 2.0
"""Longest time at shutdown for a service to read its last answers."""


async def serve(predictors: Sequence[InProcessPredictor], url: str) -> None:
    """Listen on `url` and answer calls until SIGINT or SIGTERM.

    Calls that arrived before the signal are still answered. `predictors` has one predictor for each base model. Raises ValueError
    if `url` is neither unix:///path nor tcp://host:port, and OSError if the address cannot be used.
    """
    address = predictor_address(url)
    connections = _Connections(predictors)
    if isinstance(address, str):
        previous_umask = os.umask(0o177)  # only the owner may connect to the socket
        try:
            server = await asyncio.start_unix_server(connections.handle, address, limit=wire.LINE_BYTES)
        finally:
            os.umask(previous_umask)
    else:
        if address[0] not in ("127.0.0.1", "::1", "localhost"):
            log.warning(
                "every client that can reach %s can predict with any adapter and drop it from memory: keep it on a private network",
                url,
            )
        server = await asyncio.start_server(connections.handle, *address, limit=wire.LINE_BYTES)
    stop = asyncio.Event()
    for stop_signal in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(stop_signal, stop.set)
    log.info("predictor on %s", url)
    watching = asyncio.create_task(_end_if_hanging(predictors), name="hanging")
    await stop.wait()
    watching.cancel()  # a predictor that is closed looks like one that hangs; `close` itself ends the process if one hangs
    server.close()
    connections.stop()  # refuses new calls while the predictors close, which waits for all accepted ones
    for predictor in predictors:
        await asyncio.get_running_loop().run_in_executor(None, predictor.close)
    await connections.close()


async def _end_if_hanging(predictors: Sequence[InProcessPredictor]) -> None:
    """End this process if one of its predictors hangs."""
    while not any(predictor.needs_restart() for predictor in predictors):
        await asyncio.sleep(_GAUGES_SECONDS)
    end_hung_process()


class _Connections:
    def __init__(self, predictors: Sequence[InProcessPredictor]) -> None:
        self._predictors = [(wire.about(predictor.base), predictor) for predictor in predictors]
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._receiving: dict[asyncio.StreamWriter, InProcessPredictor] = {}  # the services that know the predictor's health
        self.stopping = False

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle the connection of one service until it disconnects, then cancel its unanswered calls."""
        task = asyncio.current_task()
        assert task is not None
        waiting: dict[int, Future[Answer]] = {}
        self._open[task] = writer
        gauges: asyncio.Task[None] | None = None
        try:
            hello = json.loads(await asyncio.wait_for(reader.readuntil(b"\n"), _HELLO_SECONDS))
            predictor = next((each for about, each in self._predictors if about == hello["about"]), None)
            about = hello["about"] if predictor is not None else self._predictors[0][0]
            writer.write(wire.line({"about": about, **({"gauges": {}} if predictor is None else self._health(predictor))}))
            if predictor is None:
                if hello != healthcheck.GREETING:
                    log.warning("a service has another base model or precision: %s; this predictor has %s", hello["about"], about)
                return
            self._receiving[writer] = predictor
            gauges = asyncio.create_task(self._send_gauges(predictor, writer))
            while True:
                self._handle_message(predictor, json.loads(await reader.readuntil(b"\n")), waiting, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        except (TimeoutError, asyncio.LimitOverrunError, ValueError, KeyError, TypeError) as error:
            log.warning("a service sent an invalid message (%s); closing its connection", type(error).__name__)
        finally:
            if gauges is not None:
                gauges.cancel()
            for future in list(waiting.values()):
                future.cancel()
            self._open.pop(task, None)
            self._receiving.pop(writer, None)
            writer.close()

    def _handle_message(
        self,
        predictor: InProcessPredictor,
        document: dict[str, Any],
        waiting: dict[int, "Future[Answer]"],
        writer: asyncio.StreamWriter,
    ) -> None:
        if "call" in document:
            self._start(predictor, document, waiting, writer)
        elif "cancel" in document:
            if (future := waiting.pop(document["cancel"], None)) is not None:
                future.cancel()
        elif "forget" in document:
            predictor.forget(*document["forget"])

    def _start(
        self,
        predictor: InProcessPredictor,
        document: dict[str, Any],
        waiting: dict[int, "Future[Answer]"],
        writer: asyncio.StreamWriter,
    ) -> None:
        loop, number, weights = asyncio.get_running_loop(), document["call"], WeightsKey(**document["weights"])
        texts, share = document["texts"], document.get("share", 1)  # earlier services send no share

        def answered(future: "Future[Answer]") -> None:
            if waiting.pop(number, None) is None or future.cancelled():
                return
            problem = future.exception()
            writer.write(wire.line(wire.answer(number, future.result()) if problem is None else _error_message(number, problem)))

        try:
            if self.stopping:
                raise Unavailable("the predictor is shutting down")
            future = predictor.submit(weights, texts, share)
        except Exception as problem:  # every error must reach the service
            writer.write(wire.line(_error_message(number, problem)))
            return
        waiting[number] = future
        future.add_done_callback(lambda done: loop.call_soon_threadsafe(answered, done))

    async def _send_gauges(self, predictor: InProcessPredictor, writer: asyncio.StreamWriter) -> None:
        while True:
            await asyncio.sleep(_GAUGES_SECONDS)
            writer.write(wire.line(self._health(predictor)))

    def _health(self, predictor: InProcessPredictor) -> dict[str, Any]:
        return {"gauges": predictor.gauges(), "stopping": self.stopping}

    def stop(self) -> None:
        """Refuse new calls from now on, and tell all services at once, so that they stop counting as ready."""
        self.stopping = True
        for writer, predictor in self._receiving.items():
            writer.write(wire.line(self._health(predictor)))

    async def close(self) -> None:
        """Close each connection once its service has read the last answers, or after _DRAIN_SECONDS."""
        for task, writer in list(self._open.items()):
            with contextlib.suppress(ConnectionError, TimeoutError):
                await asyncio.wait_for(writer.drain(), _DRAIN_SECONDS)
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)


def _error_message(number: int, problem: BaseException) -> dict[str, Any]:
    """Return the message that reports a failed call to the service.

    An unexpected error is also logged, with its traceback but without its text, which may quote an input.
    """
    if wire.error_kind(problem) is None and not isinstance(problem, ServiceError):
        log.error("failed\n%s", places(problem))
    return wire.error(number, problem)
