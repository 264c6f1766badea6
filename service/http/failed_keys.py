"""Slow down clients that send wrong API keys, by their address, and log the address.

A key has 256 random bits, so nobody finds one by trying. But each attempt costs a read of the records and a line in the log, and
many of them hide what else happens. Requests without a key do not count, and a valid key from the same address is never delayed:
only the answer to a wrong key waits.
"""

import asyncio
import ipaddress
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass

from starlette.types import Scope

from service.errors import TooManyFailedKeys
from worker.logs import fields

log = logging.getLogger(__name__)
FREE_FAILURES = 10
"""Failures of one address that are answered without delay."""
FORGET_SECONDS = 6.0
"""Time after which one failure of an address is forgotten."""
WAITING_OF_ADDRESS, WAITING = 4, 64
"""Most delayed answers at a time, to one address and to all. Further failures get a 429 at once, so that nothing piles up."""
ADDRESSES = 10_000
"""Most addresses that are remembered. Beyond it, the one whose last failure is the oldest is forgotten."""
_FIRST_DELAY = 0.05
_MOST_FAILURES = FREE_FAILURES + 20.0
"""The count of an address stops here, so that it is forgiven within three minutes."""


def client_address(scope: Scope) -> str:
    """Return the address by which the client of a request is counted.

    Of an IPv6 address it is the network of 64 bits, because one machine may use all addresses of it. Returns "" if the address is
    unknown.
    """
    client = scope.get("client")
    return "" if client is None else counted_address(client[0])


def counted_address(host: str) -> str:
    """Return an IPv4 address as it is, and the network of 64 bits of an IPv6 address."""
    try:
        address = ipaddress.ip_address(unmapped_address(host))
    except ValueError:
        return host[:64]
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(address), 64), strict=False))
    return str(address)


def unmapped_address(host: str) -> str:
    """Return the IPv4 address of an IPv4-mapped IPv6 address, and every other address as it is."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return host if mapped is None else str(mapped)


@dataclass
class _Failures:
    """Counts the failures of one address.

    `count` has those that are not forgotten, `total` all since the address is remembered, and `waiting` the answers that wait.
    """

    count: float = 0.0
    total: int = 0
    last: float = 0.0
    waiting: int = 0


class FailedKeys:
    """Counts wrong keys by address. Must be used on the event loop.

    `longest_delay`: most seconds by which an answer is delayed; 0: failures are only logged.
    """

    def __init__(self, longest_delay: float) -> None:
        self._longest = longest_delay
        self._failures: OrderedDict[str, _Failures] = OrderedDict()
        self._waiting = 0

    async def slow_down(self, address: str) -> None:
        """Count a wrong key of this address, and wait before it is answered.

        Each failure beyond the first FREE_FAILURES doubles the delay. Raises TooManyFailedKeys if too many answers wait already.
        """
        failures = self._count(address)
        if failures.total & (failures.total - 1) == 0:  # the 1st, 2nd, 4th, 8th … so that the log does not grow with the attempts
            with fields(address=address, failures=failures.total):
                log.warning("a wrong API key was sent")
        delay = self._delay(failures.count)
        if delay <= 0:
            return
        if failures.waiting >= WAITING_OF_ADDRESS or self._waiting >= WAITING:
            raise TooManyFailedKeys(retry_after=self._longest)
        failures.waiting += 1
        self._waiting += 1
        try:
            await asyncio.sleep(delay)
        finally:
            failures.waiting -= 1
            self._waiting -= 1

    def _count(self, address: str) -> _Failures:
        now = time.monotonic()
        failures = self._failures.setdefault(address, _Failures())
        self._failures.move_to_end(address)
        forgotten = (now - failures.last) / FORGET_SECONDS
        failures.count = min(_MOST_FAILURES, max(0.0, failures.count - forgotten) + 1.0)
        failures.total += 1
        failures.last = now
        if len(self._failures) > ADDRESSES:
            self._failures.popitem(last=False)
        return failures

    def _delay(self, count: float) -> float:
        return 0.0 if count <= FREE_FAILURES else min(self._longest, _FIRST_DELAY * 2 ** (count - FREE_FAILURES - 1))
