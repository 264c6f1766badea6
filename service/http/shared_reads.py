"""Reads of Redis that several requests share, with threads of their own.

What a request needs before its tenant is known, such as its API key, cannot wait for the tenant's threads. If Redis is slow, all
requests that need the same read share one, so that the requests of one tenant take one thread and not one each. What was read is
used for a while.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter

R = TypeVar("R")
DROP_SECONDS = 3600.0
"""A value that was read so long ago is dropped. It is longer than any request lasts."""
THREADS = 16
"""How many different reads may be waiting for Redis at once. Further ones start when one of these has ended."""


class SharedReads(Generic[R]):
    """Reads values by name, each at most once at a time. Must be used on the event loop.

    `read`: reads the value with this name, in a thread. `keep_seconds`: how old a value may be to be used again, counted from the
    moment when its read began. `threads`: how many reads of different names may run at once.
    """

    def __init__(self, read: Callable[[str], R], keep_seconds: float, threads: int = THREADS) -> None:
        self._read, self._keep_seconds, self._limiter = read, keep_seconds, CapacityLimiter(threads)
        self._reading: dict[str, asyncio.Task[R]] = {}
        self._values: dict[str, tuple[float, R]] = {}  # with the `time.monotonic` at which the read began
        self._drop_at = 0.0

    async def get(self, name: str = "") -> R:
        """Return the value with this name, not older than `keep_seconds`.

        If it must be read and is being read already, waits for that. Raises the error of the read.
        """
        if name in self._values and time.monotonic() < self._values[name][0] + self._keep_seconds:
            return self._values[name][1]
        reading = self._reading.get(name)
        if reading is None:
            reading = self._reading[name] = asyncio.create_task(self._in_thread(name), name="shared-read")
            reading.add_done_callback(partial(self._ended, name))
        return await asyncio.shield(reading)  # a request that is cancelled does not end the read of the others

    def latest(self, name: str) -> R:
        """Return the value that was last read, without waiting.

        `get` must have returned it within the last hour.
        """
        return self._values[name][1]

    def forget(self, name: str) -> None:
        """Drop a value, so that the next `get` reads it."""
        self._values.pop(name, None)

    async def _in_thread(self, name: str) -> R:
        def timed() -> tuple[float, R]:
            began = time.monotonic()  # taken in the thread, because the task may have waited for one
            return began, self._read(name)

        self._values[name] = began, value = await anyio.to_thread.run_sync(timed, limiter=self._limiter)
        self._drop_old(began)
        return value

    def _ended(self, name: str, reading: asyncio.Task[R]) -> None:
        del self._reading[name]
        if not reading.cancelled():
            reading.exception()  # read here, because all requests that would read it may be gone

    def _drop_old(self, now: float) -> None:
        """Drop the values that are an hour old, at most once an hour."""
        if now >= self._drop_at:
            self._drop_at = now + DROP_SECONDS
            self._values = {name: each for name, each in self._values.items() if each[0] > now - DROP_SECONDS}
