"""Restore the streams of the audit log: merge the entries of a backup with those that the server has.

No entry of the server is lost: neither older ones nor those that services write meanwhile.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import redis

from worker.ledger import names, scripts
from worker.ledger.audit import most_entries
from worker.ledger.names import text

_AT_ONCE = 500
Entries = Sequence[tuple[str, Mapping[str, bytes]]]


class RestoredStreams:
    """Collects the entries of one stream after another, and merges each stream at its end.

    Every method may raise `redis.RedisError`.
    """

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client
        self._swap = scripts.register(client, "swap_stream")
        self._key = ""
        self._entries: deque[tuple[str, Mapping[str, bytes]]] = deque()

    def add(self, key: str, entries: Entries) -> None:
        """Add entries of a stream. All entries of one stream must come one after another."""
        if key != self._key:
            self.flush()
            self._key, self._entries = key, deque(maxlen=most_entries(key))
        self._entries.extend(entries)

    def flush(self) -> None:
        """Merge the entries that were added last into their stream."""
        if not self._entries:
            return
        stored = dict(self._read(self._key))
        last = next(reversed(stored), "0-0")
        merged: dict[str, Any] = {**dict(self._entries), **stored}
        latest = sorted(merged, key=_order)[-most_entries(self._key) :]
        self._redis.delete(names.RESTORED_STREAM)
        for start in range(0, len(latest), _AT_ONCE):
            with self._redis.pipeline(transaction=False) as pipe:
                for identity in latest[start : start + _AT_ONCE]:
                    pipe.xadd(names.RESTORED_STREAM, merged[identity], id=identity)
                pipe.execute()
        self._swap(keys=[self._key, names.RESTORED_STREAM], args=[last])
        self._entries.clear()

    def _read(self, key: str) -> Iterator[tuple[str, Mapping[bytes, bytes]]]:
        start = "-"
        while rows := cast(list[Any], self._redis.xrange(key, start, "+", count=_AT_ONCE)):
            yield from ((text(identity), entry) for identity, entry in rows)
            start = f"({text(rows[-1][0])}"


def _order(identity: str) -> tuple[int, int]:
    time, _, number = identity.partition("-")
    return int(time), int(number)
