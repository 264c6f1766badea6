"""Reads of Redis that several requests share, with threads of their own.

What a request needs before its tenant is known, such as its API key, cannot wait for the tenant's threads. If Redis is slow, all
requests that need the same read share one, so that the requests of one tenant take one thread and not one each.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter

R = TypeVar("R")
THREADS = 16
"""How many different reads may be waiting for Redis at once. Further ones start when one of these has ended."""


class SharedReads(Generic[R]):
    """Reads values by name, each at most once at a time. Must be used on the event loop.

    `read`: reads the value with this name, in a thread. `threads`: how many reads of different names may run at once.
    """

    def __init__(self, read: Callable[[str], R], threads: int = THREADS) -> None:
        self._read, self._limiter = read, CapacityLimiter(threads)
        self._reading: dict[str, asyncio.Task[tuple[float, R]]] = {}

    async def get(self, name: str = "") -> tuple[float, R]:
        """Return the `time.monotonic` at which the read of a value began, and the value.

        Waits for a read of it that is running already. Raises the error of the read.
        """
        reading = self._reading.get(name)
        if reading is None:
            reading = self._reading[name] = asyncio.create_task(self._in_thread(name), name="shared-read")
            reading.add_done_callback(partial(self._ended, name))
        return await asyncio.shield(reading)  # a request that is cancelled does not end the read of the others

    async def _in_thread(self, name: str) -> tuple[float, R]:
        def timed() -> tuple[float, R]:
            began = time.monotonic()  # taken in the thread, because the task may have waited for one
            return began, self._read(name)

        return await anyio.to_thread.run_sync(timed, limiter=self._limiter)

    def _ended(self, name: str, reading: asyncio.Task[tuple[float, R]]) -> None:
        del self._reading[name]
        if not reading.cancelled():
            reading.exception()  # read here, because all requests that would read it may be gone
