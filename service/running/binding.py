"""Bind the address that a service listens on, and check it if no API key exists. Torch-free.

A service that requires no key listens only on loopback addresses, unless ALLOW_WITHOUT_KEYS permits other addresses.
"""

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
    """Raised if a service without API keys would listen on an address that other machines can reach.

    The message is one line that says what to do.
    """


def settings_for_host(settings: ServiceSettings, host: str) -> ServiceSettings:
    """Return the settings for a service that listens on the address `host`, or refuse the address.

    On a loopback address, `allow_without_keys` is set to True. On any other address, raises BindingRefused if no API key was ever
    created and `allow_without_keys` is False. If the records cannot be reached, it is unknown whether a key exists. Then the
    service starts, and accepts requests without a key only if `allow_without_keys` is True.
    """
    if ipaddress.ip_address(host).is_loopback:
        settings = settings.model_copy(update={"allow_without_keys": True})
    client = records_client(settings.redis_url)
    try:
        if Keys(client).any():
            return settings
    except redis.RedisError as error:
        log.warning("the records cannot be reached (%s): the service reads the API keys once they can be", type(error).__name__)
        return settings
    finally:
        client.close()
    if not settings.allow_without_keys:
        raise BindingRefused(
            f"--host {host}: expected a loopback address while there is no API key; create one (`quickstudy keys create`, while "
            "`quickstudy serve` runs on loopback or REDIS_URL is set), or use --without-keys"
        )
    log.warning("there is no API key: until `quickstudy keys create`, every request is accepted as tenant default with every scope")
    return settings


def bind(host: str, port: int) -> socket.socket:
    """Return a TCP socket bound to an address and a port (0: any free one).

    Exits with a one-line message and status 1 if that fails.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is given explicitly, because asyncio disables Nagle's algorithm only then.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        sys.exit(f"error: --host {host} --port {port}: {error.strerror}")
    return listening
