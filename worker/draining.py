"""How a worker stops: it takes no new job, and has `DRAIN_SECONDS` to finish those at hand."""

import math
import time


class DrainTimer:
    """Tells whether a worker that was asked to stop has used up its time. Before `start` it never has."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until = math.inf

    def start(self) -> None:
        self._until = min(self._until, time.monotonic() + self._seconds)

    def expired(self) -> bool:
        return time.monotonic() > self._until
