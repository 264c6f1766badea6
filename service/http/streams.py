"""How many requests a tenant may keep open in this process: each holds a connection, and looks at the records again and again."""

import contextlib
from collections import Counter
from collections.abc import Iterator

from worker.errors import LimitReached

_RETRY_SECONDS = 5


class Streams:
    """Open streams and waits, by tenant. `most`: of one tenant; 0: no limit. To be used on the event loop."""

    def __init__(self, most: int) -> None:
        self._most, self._open = most, Counter[str]()

    @contextlib.contextmanager
    def one(self, tenant: str) -> Iterator[None]:
        """Counts one more while the block runs. Raises LimitReached."""
        if self._most and self._open[tenant] >= self._most:
            raise LimitReached("MAX_STREAMS", self._most, self._open[tenant], retry_after=_RETRY_SECONDS)
        self._open[tenant] += 1
        try:
            yield
        finally:
            self._open[tenant] -= 1
            if not self._open[tenant]:
                del self._open[tenant]
