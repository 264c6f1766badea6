"""Runs the application under uvicorn and says where it listens."""

import logging
import socket
import sys

import uvicorn

from service.app import create_app
from service.settings import ServiceSettings

log = logging.getLogger(__name__)


def run(settings: ServiceSettings, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM; requests that have begun are answered first. Exits with 1 where the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        sys.exit(f"error: --host {host} --port {port}: {error.strerror}")
    log.info("starting on http://%s:%d (docs at /docs)", host, listening.getsockname()[1])
    config = uvicorn.Config(
        create_app(settings), log_config=None, access_log=False, timeout_graceful_shutdown=20, timeout_keep_alive=30
    )
    uvicorn.Server(config).run(sockets=[listening])
