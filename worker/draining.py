"""Graceful shutdown: a stopping worker claims no new job and has `DRAIN_SECONDS` for its claimed ones."""

import math
import time


class DrainTimer:
    """A deadline for the jobs of a worker that is shutting down. Without `start` it never expires."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline = math.inf

    def start(self) -> None:
        """Start the countdown. Further calls do not extend it."""
        self._deadline = min(self._deadline, time.monotonic() + self._seconds)

    def expired(self) -> bool:
        return time.monotonic() > self._deadline
