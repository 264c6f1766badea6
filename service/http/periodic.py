"""Write what was collected in memory to the records, once a second."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)
SECONDS = 1.0


class PeriodicWrites:
    """Writes once a second, and a last time at the end. Must be used on the event loop.

    `what`: names what is written, in warnings. `write`: writes it; its argument is True for the last time. Whatever it raises is
    only logged.
    """

    def __init__(self, what: str, write: Callable[[bool], Awaitable[None]]) -> None:
        self._what, self._write = what, write
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to write once a second."""
        self._task = asyncio.create_task(self._repeat(), name=f"write {self._what}")

    async def close(self) -> None:
        """Stop the task of `start` and write a last time. What cannot be written then is lost."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._try_to_write(last=True)

    async def _repeat(self) -> None:
        while True:
            await asyncio.sleep(SECONDS)
            await self._try_to_write(last=False)

    async def _try_to_write(self, *, last: bool) -> None:
        try:
            await self._write(last)
        except Exception as error:  # whatever it is, it must not end the task
            otherwise = "they are lost" if last else "trying again"
            log.warning("%s could not be written to the records (%s): %s", self._what, type(error).__name__, otherwise)
