"""The time of the last use of each API key.

The times are in a hash of their own, because writing them into the keys could undo a revocation that happens at the same time.
"""

from collections.abc import Mapping
from typing import Any, cast

import redis

from worker.ledger import names, scripts
from worker.ledger.names import text

_SINCE = "since"
"""The field that has the time since which uses are recorded. It is no id of a key, because ids are hexadecimal."""


class KeyUses:
    """Stores when keys were last used. Every method raises `redis.RedisError` if Redis cannot be reached."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client
        self._record = scripts.register(client, "use_keys")

    def record(self, ms_ago: Mapping[str, int]) -> None:
        """Store how long ago keys were used, in ms, by id. A later use that is already stored stays.

        The first call also stores the current time, for `since`.
        """
        arguments: list[Any] = [_SINCE, *(part for use in ms_ago.items() for part in use)]
        self._record(keys=[names.KEY_USES], args=arguments)

    def latest(self) -> dict[str, int]:
        """Return when each key was last used, as a Unix time in ms by id, without unused keys."""
        return {identity: time for identity, time in self._times().items() if identity != _SINCE}

    def since(self) -> int | None:
        """Return since when uses are recorded, as a Unix time in ms, or None if no use was recorded yet."""
        return self._times().get(_SINCE)

    def _times(self) -> dict[str, int]:
        stored = cast(dict[bytes, bytes], self._redis.hgetall(names.KEY_USES))
        return {text(field): int(value) for field, value in stored.items()}
