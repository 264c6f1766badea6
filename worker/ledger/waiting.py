"""Waiting jobs: their order, their queues, and which of them must be announced again.

A job is announced by a wake-up, a message in a queue, which may be lost. `qs:pending` contains every unfinished job with the time
at which a reaper must check it. If the job's wake-up is gone at that time, the reaper announces the job again.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

import redis

from worker.ledger import names, scripts
from worker.ledger.names import text

ANNOUNCE_AGAIN_MS = 10_000
"""Delay before the reaper checks a queued job that no worker has claimed, in milliseconds."""


class WaitingJobs:
    """Reads the waiting jobs from Redis.

    Every method raises `redis.RedisError` if Redis cannot be reached.
    """

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client
        self._due = scripts.register(client, "due")

    def queues(self) -> list[str]:
        """Return every queue that ever had a job."""
        return sorted(text(name) for name in cast(set[bytes], self._redis.smembers(names.QUEUES)))

    def due(self, most: int = 100, *, oldest: Mapping[str, tuple[str, str]] = MappingProxyType({})) -> list[tuple[str, str, str]]:
        """Return (tenant, adapter id, queue) of the jobs to announce again, and postpone their next check.

        These are jobs whose lease expired, jobs that were handed back, and queued jobs whose wake-up is gone. A call checks at
        most `most` jobs. `oldest`: {queue: the job in its oldest wake-up}, without empty queues. The returned queue is an empty
        string for a job from a version in which queues had no names.
        """
        keys = [names.PENDING, *(names.record(*job) for job in oldest.values())]
        flat = self._due(keys=keys, args=[most, ANNOUNCE_AGAIN_MS, *oldest])
        return [(*names.split_member(member), text(queue)) for member, queue in zip(flat[::2], flat[1::2], strict=True)]
