"""The health of a predictor: how long no batch has ended, and the end of a process that hangs."""

import logging
import os
import threading
import time
from typing import NoReturn

from worker.watchdog import HUNG_STATUS, places_of_threads

log = logging.getLogger(__name__)


def end_hung_process() -> NoReturn:
    """End this process because its predictor hangs, so that whatever supervises it starts a new one."""
    log.error("a predictor hangs, ending this process with status %d; its threads are at\n%s", HUNG_STATUS, places_of_threads())
    logging.shutdown()
    os._exit(HUNG_STATUS)


class Progress:
    """Measures how long a thread has not ended a batch although calls wait for one. Thread-safe."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._lock = threading.Lock()

    def work_waits(self) -> None:
        """Note that there is work. Starts the clock unless it runs already."""
        with self._lock:
            if self._since is None:
                self._since = time.monotonic()

    def batch_ended(self, *, more: bool) -> None:
        """Note the end of a batch.

        `more`: True if further work waits, which restarts the clock; False stops it.
        """
        with self._lock:
            self._since = time.monotonic() if more else None

    def seconds(self) -> float:
        """Return the seconds since the last batch ended.

        If work arrived later, counts from then. Returns 0 if there is no work.
        """
        since = self._since
        return 0.0 if since is None else time.monotonic() - since
