"""Record when each API key was last used, off the path of the request.

A process writes the use of a key at most once a minute. A killed process loses the uses that it has not written.
"""

import time

from starlette.concurrency import run_in_threadpool

from service.http.periodic import PeriodicWrites
from worker.ledger.key_uses import KeyUses

WRITE_SECONDS = 60.0
"""The shortest time between two writes of the same key's use, in seconds."""


class KeyUseRecorder:
    """Collects the uses of API keys. Must be used on the event loop.

    `writes` writes them to the records: the first use of a key within a second, later ones once a minute.
    """

    def __init__(self, uses: KeyUses) -> None:
        self._uses = uses
        self._used: dict[str, float] = {}  # by id: the `time.monotonic` of the latest use that is not written yet
        self._written: dict[str, float] = {}  # by id: the `time.monotonic` of the latest write, if it may not be repeated yet
        self.writes = PeriodicWrites("uses of keys", self._write_due)

    def note(self, identity: str) -> None:
        """Note that the key with this id was used now. An empty id, of a request without a key, is ignored."""
        if identity:
            self._used[identity] = time.monotonic()

    async def _write_due(self, last: bool) -> None:
        """Write the uses of the keys that were not written in the last minute; if `last` is True, of all."""
        now = time.monotonic()
        self._written = {identity: at for identity, at in self._written.items() if now - at < WRITE_SECONDS}
        await self._write([identity for identity in self._used if last or identity not in self._written])

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
