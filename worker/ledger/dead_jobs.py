"""Dead jobs: jobs that failed because they used up their attempts.

An operator can retry or delete them.
"""

from collections.abc import Callable
from typing import cast

import redis

from worker.ledger import audit, names, scripts
from worker.ledger.record import Record
from worker.ledger.retention import KEEP_EXPIRED_RECORDS_MS


class DeadJobs:
    """Lists and revives dead jobs. Every method raises `redis.RedisError` if Redis cannot be reached.

    `get(tenant, adapter_id)` returns the record of an adapter, or None if there is none.
    """

    def __init__(self, client: "redis.Redis", get: Callable[[str, str], Record | None]) -> None:
        self._redis, self._get = client, get
        self._revive = scripts.register(client, "revive")

    def latest(self, most: int = 1000) -> list[Record]:
        """Return the records of up to `most` dead jobs, the latest failure first."""
        members = cast(list[bytes], self._redis.zrevrange(names.DEAD, 0, most - 1))
        return [record for member in members if (record := self._get(*names.split_member(member))) is not None]

    def revive(self, tenant: str, adapter_id: str, *, is_audited: bool = True) -> bool:
        """Queue a dead job again as if it were new, with no attempt used. Return False if it is not dead.

        `is_audited`: True to write an entry of the audit log.
        """
        keys = [*names.job_keys(tenant, adapter_id), names.RETIRE]
        context = audit.script_context(tenant) if is_audited else ""
        return bool(self._revive(keys=keys, args=[names.member(tenant, adapter_id), KEEP_EXPIRED_RECORDS_MS, context]))
