"""Run the application under uvicorn, or a predictor alone."""

import asyncio
import logging
import socket
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TypeVar

import uvicorn
from fastapi import FastAPI

from metatrain.errors import MetatrainError
from metatrain.models.description import BaseDescription
from service.http.app import create_app
from service.http.drain import Drain
from service.kinds.registry import http_kinds
from service.predicting.predictor import InProcessPredictor
from service.predicting.predictor_server import serve
from service.running.binding import BindingRefused, settings_for_host
from service.running.connections import OpenConnections, limited_connection
from service.running.open_files import raise_limit
from service.settings import ServiceSettings
from worker.collection import resume_collection
from worker.errors import SettingsError
from worker.ledger.initializations import Initializations
from worker.ledger.servers import service_client
from worker.ledger.weights_cache import WeightStore
from worker.runtime import Resident, describe_residents, load_residents

log = logging.getLogger(__name__)
B = TypeVar("B", bound=BaseDescription)


def _exiting(load: Callable[[ServiceSettings], Sequence[Resident[B]]], settings: ServiceSettings) -> Sequence[Resident[B]]:
    """Return what `load` returns.

    Exits with a one-line message and status 1 if something cannot be loaded.
    """
    try:
        http_kinds()  # called here so that an installed kind that cannot be used stops the start, not the first request
        return load(settings)
    except (MetatrainError, SettingsError) as error:
        sys.exit(f"error: {error}")


_CUT_OFF_SECONDS = 3.0
"""Time to answer the requests that are cancelled once STOP_SECONDS are over."""
_CLOSE_SECONDS = 2
"""Time for the connections to close once every request is answered."""


class _Server(uvicorn.Server):
    """A uvicorn server that, on a signal, refuses new requests at once and answers the running ones.

    uvicorn alone would close its listening sockets first, so that new connections get no answer, and later cancel the requests that
    are still running, which their clients see as a 500. A second signal ends the wait for the running requests.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, stop_seconds: float) -> None:
        super().__init__(config)
        self._app, self._stop_seconds = app, stop_seconds
        self._drain: Drain = app.state.drain
        self._stop_at = float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._captured_signals.append(sig)  # uvicorn raises them again once it has stopped
        self._stop_at = time.monotonic() + (0.0 if self._drain.stopping else self._stop_seconds)
        self._drain.stop()
        if (state := getattr(self._app.state, "service", None)) is not None:
            state.jobs.stopping = True  # answers the requests that wait for a job, and ends event streams

    async def on_tick(self, counter: int) -> bool:
        """Return True once the server may close: after a signal, when no request is running any more."""
        if await super().on_tick(counter):
            return True
        if not self._drain.stopping:
            return False
        over = time.monotonic() - self._stop_at
        if over >= 0 and not self._drain.gave_up:
            log.warning("stopping: %d requests are not answered in time and get 503", self._drain.running())
            self._drain.give_up()
        return not self._drain.running() or over >= _CUT_OFF_SECONDS


def run_predictor(settings: ServiceSettings, url: str) -> None:
    """Run only the predictor, listening on `url`, without the HTTP service, until SIGINT or SIGTERM.

    Exits with a one-line message and status 1 if a base model or an initialization cannot be loaded, or if the address cannot be
    used.
    """
    residents = _exiting(load_residents, settings)
    store = WeightStore(service_client(settings.weights_url), settings.cipher)
    stored = Initializations(service_client(settings.redis_url)).get
    share = 1 / len(residents)
    predictors = [
        InProcessPredictor(resident.base, resident.initializations, store, settings, stored=stored, share=share)
        for resident in residents
    ]
    resume_collection()
    try:
        asyncio.run(serve(predictors, url))
    except OSError as error:
        sys.exit(f"error: --listen {url}: {error.strerror}")


def run(settings: ServiceSettings, listening: socket.socket, *, loaded: Callable[[], None] = lambda: None) -> None:
    """Run the HTTP service on the socket `listening` until SIGINT or SIGTERM.

    `loaded`: called once the base models and initializations are loaded.

    Requests that started before the signal are still answered, for up to STOP_SECONDS; new ones get 503. Exits with a one-line
    message and status 1 if a base model or an initialization cannot be loaded, or if there is no API key and the service may
    therefore not listen on this address.
    """
    host, port = listening.getsockname()[:2]
    try:
        settings = settings_for_host(settings, host)
    except BindingRefused as error:
        sys.exit(f"error: {error}")
    raise_limit()
    log.info("starting on http://%s:%d (docs at /docs)", f"[{host}]" if ":" in host else host, port)
    # Where another process predicts, this one needs no weights: 90 MB for the default base model.
    residents: Sequence[Resident[BaseDescription]]
    residents = _exiting(load_residents if settings.predictor_url is None else describe_residents, settings)
    loaded()
    app = create_app(settings, residents)
    resume_collection()
    _Server(_config(app, settings), app, settings.stop_seconds).run(sockets=[listening])


def _config(app: FastAPI, settings: ServiceSettings) -> uvicorn.Config:
    connections = OpenConnections(settings.max_connections, settings.max_connections_per_address, settings.proxies)
    return uvicorn.Config(
        app,
        http=limited_connection(connections, settings.header_seconds),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.proxies),
        forwarded_allow_ips=list(settings.proxies),
        reset_contextvars=True,  # otherwise the log lines of a request may have the tenant of the one before it (cpython #140947)
        h11_max_incomplete_event_size=16_384,  # how much of an unfinished request line with its headers is kept, in bytes
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=_CLOSE_SECONDS,
    )
