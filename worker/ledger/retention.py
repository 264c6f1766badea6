"""Remove what has had its time: records of adapters that expired long ago, and deleted text in the append-only file. Torch-free."""

from collections.abc import Callable
from typing import cast

import redis

from worker.ledger import names, scripts
from worker.ledger.clock import server_ms

KEEP_EXPIRED_RECORDS_MS = 7 * 24 * 3600 * 1000
"""How long a record outlives its adapter, in milliseconds, so that a late reader is told `expired` and not `unknown`."""


class Retention:
    """Remove old records and deleted text. Every method may raise `redis.RedisError` if Redis cannot be reached.

    `delete_if_over` deletes a record if its time is over, and returns its fence, or None if it was not deleted.
    """

    def __init__(self, client: "redis.Redis", delete_if_over: Callable[[str, str], int | None]) -> None:
        self._redis, self._delete_if_over = client, delete_if_over
        self._erased = scripts.register(client, "erased")
        self._rewrite_began: int | None = None

    def retire(self, most: int = 100) -> list[tuple[str, str, int]]:
        """Remove records whose adapters expired long ago. Return (tenant, adapter id, fence) of each."""
        members = cast(list[bytes], self._redis.zrangebyscore(names.RETIRE, "-inf", server_ms(self._redis), start=0, num=most))
        gone = [(tenant, identity, self._delete_if_over(tenant, identity)) for tenant, identity in map(names.split_member, members)]
        return [(tenant, identity, fence) for tenant, identity, fence in gone if fence is not None]

    def erase(self, after_ms: int) -> bool:
        """Have the server rewrite its append-only file `after_ms` after a deletion, because the file still holds the deleted text.

        Call it repeatedly: it starts the rewrite, and returns True once the rewritten file is in place. Raises
        redis.ResponseError if the server does not allow the rewrite.
        """
        since = cast(bytes | None, self._redis.get(names.ERASE))
        if since is None:
            return False
        state = self._redis.info("persistence")
        if state["aof_rewrite_in_progress"] or state.get("aof_rewrite_scheduled"):
            return False
        if self._rewrite_began is not None and state["aof_last_bgrewrite_status"] == "ok":
            began, self._rewrite_began = self._rewrite_began, None
            return bool(self._erased(keys=[names.ERASE, names.ERASE_LAST], args=[began]))
        now = server_ms(self._redis)
        if now - int(since) >= after_ms:
            self._redis.bgrewriteaof()
            self._rewrite_began = now
        return False
