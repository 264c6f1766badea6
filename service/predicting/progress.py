"""The health of a predictor: how long it has had work without ending a batch."""

import threading
import time


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
