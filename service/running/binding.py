"""Where a service listens, and who may reach one that asks for no key: this machine alone, unless it is said otherwise. Torch-
free."""

import ipaddress
import logging
import socket
import sys

import redis

from service.settings import ServiceSettings
from worker.ledger.api_keys import Keys
from worker.ledger.servers import records_client

log = logging.getLogger(__name__)


class BindingRefused(Exception):
    """An open service on an address that others reach; the message is one line that says what to do."""


def opened(settings: ServiceSettings, host: str) -> ServiceSettings:
    """The settings of a service that listens on the address `host`, with `allow_without_keys` on for a loopback one.

    Raises BindingRefused for any other where no key was ever made and nothing allows to go without. Where the records are out of
    reach it cannot be known, and the service starts closed: no request is answered without a key.
    """
    if ipaddress.ip_address(host).is_loopback:
        settings = settings.model_copy(update={"allow_without_keys": True})
    client = records_client(settings.redis_url)
    try:
        if Keys(client).any():
            return settings
    except redis.RedisError as error:
        log.warning(
            "the records are out of reach (%s): whether there are API keys is seen when they are back", type(error).__name__
        )
        return settings
    finally:
        client.close()
    if not settings.allow_without_keys:
        raise BindingRefused(
            f"--host {host}: expected a loopback address while there is no API key; make one (`quickstudy keys create`, while "
            "`quickstudy serve` runs on loopback or REDIS_URL is set), or say --without-keys"
        )
    log.warning("there is no API key: whoever comes is tenant default with every scope, until `quickstudy keys create`")
    return settings


def listen(host: str, port: int) -> socket.socket:
    """Exits with one line and status 1 where the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio turns Nagle off only where it is told TCP
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        sys.exit(f"error: --host {host} --port {port}: {error.strerror}")
    return listening
