"""Retention: remove old records, and deleted text that is still in Redis's append-only file."""

from collections.abc import Callable
from typing import cast

import redis

from worker.ledger import names, scripts
from worker.ledger.clock import server_ms

KEEP_EXPIRED_RECORDS_MS = 7 * 24 * 3600 * 1000
"""How long a record is kept after its adapter expires, in milliseconds. During this time, readers get the status `expired`."""


class Retention:
    """Removes old records, and deleted text from Redis's append-only file.

    Every method raises `redis.RedisError` if Redis cannot be reached. `delete_if_due(tenant, adapter_id)` deletes a record if the
    time for its removal (`qs:retire`) has come. It returns the record's fence, or None if the record was not deleted.
    """

    def __init__(self, client: "redis.Redis", delete_if_due: Callable[[str, str], int | None]) -> None:
        self._redis, self._delete_if_due = client, delete_if_due
        self._erased = scripts.register(client, "erased")
        self._rewrite_began: int | None = None

    def retire(self, most: int = 100) -> list[tuple[str, str, int]]:
        """Remove up to `most` records whose adapters expired long ago.

        Returns (tenant, adapter id, fence) of each removed record. The three values identify the weights in the cache.
        """
        members = cast(list[bytes], self._redis.zrangebyscore(names.RETIRE, "-inf", server_ms(self._redis), start=0, num=most))
        jobs = map(names.split_member, members)
        fences = [(tenant, identity, self._delete_if_due(tenant, identity)) for tenant, identity in jobs]
        return [(tenant, identity, fence) for tenant, identity, fence in fences if fence is not None]

    def erase(self, after_ms: int) -> bool:
        """Make Redis rewrite its append-only file, `after_ms` after a deletion, without the deleted text.

        Call this method repeatedly. One call starts the rewrite and returns False. A later call returns True once the rewritten
        file is in use. Raises redis.ResponseError if the server does not allow the rewrite.
        """
        deleted_at = cast(bytes | None, self._redis.get(names.ERASE))
        if deleted_at is None:
            return False
        state = self._redis.info("persistence")
        if state["aof_rewrite_in_progress"] or state.get("aof_rewrite_scheduled"):
            return False
        if self._rewrite_began is not None and state["aof_last_bgrewrite_status"] == "ok":
            began, self._rewrite_began = self._rewrite_began, None
            return bool(self._erased(keys=[names.ERASE, names.ERASE_LAST], args=[began]))
        now = server_ms(self._redis)
        if now - int(deleted_at) >= after_ms:
            self._redis.bgrewriteaof()
            self._rewrite_began = now
        return False
