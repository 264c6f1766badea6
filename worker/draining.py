"""Graceful shutdown: a stopping worker claims no new job, and has a time limit for its claimed jobs.

The limit is `DRAIN_SECONDS`.
"""

import math
import time


class DrainTimer:
    """The deadline by which a stopping worker must finish its jobs.

    It cannot expire before `start` is called.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline = math.inf

    def start(self) -> None:
        """Start the countdown. Further calls do not extend it."""
        self._deadline = min(self._deadline, time.monotonic() + self._seconds)

    def expired(self) -> bool:
        return time.monotonic() > self._deadline
