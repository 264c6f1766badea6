"""Record when each API key was last used, off the path of the request.

A process writes the use of a key at most once a minute. A killed process loses the uses that it has not written.
"""

import asyncio
import contextlib
import logging
import time

from starlette.concurrency import run_in_threadpool

from worker.ledger.key_uses import KeyUses

log = logging.getLogger(__name__)
WRITE_SECONDS = 60.0
"""The shortest time between two writes of the same key's use, in seconds."""
_TICK_SECONDS = 1.0


class KeyUseRecorder:
    """Collects the uses of API keys and writes them to the records. Must be used on the event loop."""

    def __init__(self, uses: KeyUses) -> None:
        self._uses = uses
        self._used: dict[str, float] = {}  # by id: the `time.monotonic` of the latest use that is not written yet
        self._written: dict[str, float] = {}  # by id: the `time.monotonic` of the latest write, if it may not be repeated yet
        self._task: asyncio.Task[None] | None = None

    def note(self, identity: str) -> None:
        """Note that the key with this id was used now. An empty id, of a request without a key, is ignored."""
        if identity:
            self._used[identity] = time.monotonic()

    def start(self) -> None:
        """Start to write the uses of keys: the first use within a second, later ones once a minute."""
        self._task = asyncio.create_task(self._write_periodically(), name="key-uses")

    async def close(self) -> None:
        """Stop the task of `start`, and write the uses that are left.

        They are lost if the records cannot be reached.
        """
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._try_to_write(list(self._used), "they are lost")

    async def _write_periodically(self) -> None:
        while True:
            now = time.monotonic()
            self._written = {identity: at for identity, at in self._written.items() if now - at < WRITE_SECONDS}
            await self._try_to_write([identity for identity in self._used if identity not in self._written], "trying again")
            await asyncio.sleep(_TICK_SECONDS)

    async def _try_to_write(self, identities: list[str], otherwise: str) -> None:
        """Write the uses of these keys. An error is only logged, with what happens otherwise."""
        try:
            await self._write(identities)
        except Exception as error:  # whatever it is, it must not end the task
            log.warning("uses of keys could not be written to the records (%s): %s", type(error).__name__, otherwise)

    async def _write(self, identities: list[str]) -> None:
        if not identities:
            return
        now, used = time.monotonic(), {identity: self._used.pop(identity) for identity in identities}
        try:
            await run_in_threadpool(self._uses.record, {identity: round(1000 * (now - at)) for identity, at in used.items()})
        except Exception:
            self._used = {**used, **self._used}  # a use since then is later
            raise
        self._written.update(dict.fromkeys(identities, now))
