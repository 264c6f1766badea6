"""A limit on the event streams and waiting requests that a tenant keeps open in this process.

Each of them holds a connection and reads the records repeatedly.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator

from worker.errors import LimitReached
from worker.ledger.usage import LimitsOf

_RETRY_SECONDS = 5


class Streams:
    """Counts open streams and waiting requests by tenant. Must be used on the event loop."""

    def __init__(self, limits_of: LimitsOf) -> None:
        self._limits_of, self._open = limits_of, Counter[str]()

    def open(self, tenant: str) -> int:
        """Return how many streams and waiting requests of a tenant are open now."""
        return self._open[tenant]

    @contextlib.contextmanager
    def acquire(self, tenant: str) -> Iterator[None]:
        """Count one more stream or waiting request of the tenant while the block runs.

        Raises LimitReached if the tenant already has MAX_STREAMS of them.
        """
        most = self._limits_of(tenant).get("MAX_STREAMS", 0)
        if most and self._open[tenant] >= most:
            raise LimitReached("MAX_STREAMS", most, self._open[tenant], retry_after=_RETRY_SECONDS)
        self._open[tenant] += 1
        try:
            yield
        finally:
            self._open[tenant] -= 1
            if not self._open[tenant]:
                del self._open[tenant]
