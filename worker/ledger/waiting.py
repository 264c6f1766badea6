"""The jobs that wait: in what order, in which queues, and which must be announced to the workers again. Torch-free.

A message in a queue only wakes a worker up, and may be lost. `qs:pending` has every unfinished job by when a reaper should look
at it; a job that is due there, and whose wake-up is gone, is announced again.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

import redis

from worker.ledger import names, scripts
from worker.ledger.names import text

ANNOUNCE_AGAIN_MS = 10_000
"""Delay before a queued job that no worker has claimed is announced again, in milliseconds."""


class WaitingJobs:
    """Read the waiting jobs on one Redis. Every method may raise `redis.RedisError` if it cannot be reached."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client
        self._due = scripts.register(client, "due")

    def for_pass(self, pass_key: str, most: int) -> list[tuple[str, str]]:
        """Return (tenant, adapter id) of jobs with this pass key that wait for their first attempt, the longest wait first.

        They still have to be claimed: another worker may be faster.
        """
        members = cast(list[bytes], self._redis.zrange(names.waiting(pass_key), 0, most - 1)) if most else []
        return [names.split_member(member) for member in members]

    def queues(self) -> list[str]:
        """Return every queue that ever had a job."""
        return sorted(text(name) for name in cast(set[bytes], self._redis.smembers(names.QUEUES)))

    def due(self, most: int = 100, *, oldest: Mapping[str, tuple[str, str]] = MappingProxyType({})) -> list[tuple[str, str, str]]:
        """Return (tenant, adapter id, queue) of unfinished jobs to be announced again, and put off when they are due next.

        Their lease ran out, or they were handed back, or no worker claimed them although their wake-up is gone. `oldest`: by queue,
        the job whose wake-up has waited longest, for queues that hold one. The queue is empty for a job that was accepted before
        there were several.
        """
        keys = [names.PENDING, *(names.record(*job) for job in oldest.values())]
        found = self._due(keys=keys, args=[most, ANNOUNCE_AGAIN_MS, *oldest])
        return [(*names.split_member(member), text(queue)) for member, queue in zip(found[::2], found[1::2], strict=True)]
