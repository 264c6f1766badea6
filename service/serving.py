"""Runs the application under uvicorn and says where it listens."""

import logging
import socket
import sys

import torch
import uvicorn

from metatrain.artifact import Initialization
from metatrain.base.text import TextBase, load_text_base
from metatrain.catalog import load_catalog
from metatrain.errors import MetatrainError
from service.app import create_app
from service.settings import ServiceSettings

log = logging.getLogger(__name__)


def _load(settings: ServiceSettings) -> tuple[TextBase, dict[str, Initialization]]:
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    try:
        base = load_text_base(settings.base_model, precision=settings.precision)
        return base, load_catalog(base, settings.initializations_dir)
    except MetatrainError as error:
        sys.exit(f"error: {error}")


def run(settings: ServiceSettings, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM; requests that have begun are answered first. Exits with one line and
    status 1 where the port is taken or the base model or an initialization cannot be loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        sys.exit(f"error: --host {host} --port {port}: {error.strerror}")
    log.info("starting on http://%s:%d (docs at /docs)", host, listening.getsockname()[1])
    app = create_app(settings, *_load(settings))
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=20, timeout_keep_alive=30)
    uvicorn.Server(config).run(sockets=[listening])
