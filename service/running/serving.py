"""Run the application under uvicorn, or a predictor alone."""

import asyncio
import logging
import socket
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI

from metatrain.errors import MetatrainError
from service.http.app import create_app
from service.kinds.registry import http_kinds
from service.predicting.predictor import InProcessPredictor
from service.predicting.predictor_server import serve
from service.running.binding import BindingRefused, settings_for_host
from service.settings import ServiceSettings
from worker.collection import resume_collection
from worker.errors import SettingsError
from worker.ledger.initializations import Initializations
from worker.ledger.servers import records_client, weights_client
from worker.ledger.weights_cache import WeightStore
from worker.runtime import Resident, load_residents

log = logging.getLogger(__name__)


def _load(settings: ServiceSettings) -> list[Resident]:
    try:
        http_kinds()  # called here so that an installed kind that cannot be used stops the start, not the first request
        return load_residents(settings, probed=settings.predictor_url is None)
    except (MetatrainError, SettingsError) as error:
        sys.exit(f"error: {error}")


class _Server(uvicorn.Server):
    """A uvicorn server that, on a signal to stop, immediately answers the requests that wait for a job."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if (state := getattr(self._app.state, "service", None)) is not None:
            state.jobs.stopping = True
        super().handle_exit(sig, frame)


def run_predictor(settings: ServiceSettings, url: str) -> None:
    """Run only the predictor, listening on `url`, without the HTTP service, until SIGINT or SIGTERM.

    Exits with a one-line message and status 1 if a base model or an initialization cannot be loaded, or if the address cannot be
    used.
    """
    residents = _load(settings.model_copy(update={"predictor_url": None}))
    store = WeightStore(weights_client(settings.weights_url, connect_timeout=2), settings.cipher)
    stored = Initializations(records_client(settings.redis_url, connect_timeout=2)).get
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


def run(settings: ServiceSettings, listening: socket.socket) -> None:
    """Run the HTTP service on the socket `listening` until SIGINT or SIGTERM.

    Requests that started before the signal are still answered. Exits with a one-line message and status 1 if a base model or an
    initialization cannot be loaded, or if there is no API key and the service may therefore not listen on this address.
    """
    host, port = listening.getsockname()[:2]
    try:
        settings = settings_for_host(settings, host)
    except BindingRefused as error:
        sys.exit(f"error: {error}")
    log.info("starting on http://%s:%d (docs at /docs)", f"[{host}]" if ":" in host else host, port)
    app = create_app(settings, _load(settings))
    resume_collection()
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=20, timeout_keep_alive=30)
    _Server(config, app).run(sockets=[listening])
