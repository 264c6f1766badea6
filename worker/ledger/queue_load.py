"""The load of each queue, for autoscalers: its jobs, the age of the oldest, the expected wait.

A read costs one access for each unfinished job; finished records cost nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import redis

from worker.ledger import names, scripts
from worker.ledger.names import text

_PART = 500
"""Jobs that one atomic step counts, so that Redis answers other clients in between."""
_PASS_WEIGHT = 0.2
"""Weight of the latest pass in the average time of a queue's jobs."""


@dataclass(frozen=True)
class QueueLoad:
    """The unfinished jobs of one queue.

    `oldest_seconds`: age of the oldest queued job, 0 if there is none. `job_seconds`: average time that a worker took for each job
    of the latest passes, None if none has been measured.
    """

    queued: int = 0
    running: int = 0
    oldest_seconds: float = 0.0
    job_seconds: float | None = None

    def estimated_wait(self, workers: int) -> float | None:
        """Return the seconds until a job that is accepted now begins.

        These workers are assumed to go on at the measured speed. Running jobs count as half done. Returns None if there is no
        worker or no measured time.
        """
        if workers < 1 or self.job_seconds is None:
            return None
        return (self.queued + self.running / 2) * self.job_seconds / workers


class QueueLoads:
    """Measures the load of the queues. Every method raises `redis.RedisError` if Redis cannot be reached."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client
        self._depths = scripts.register(client, "queue_depths")
        self._measure = scripts.register(client, "measure_pass")

    def observe(self, queue: str, job_ms: float) -> None:
        """Add a pass to the average of its queue.

        `job_ms`: the duration of the pass divided by the number of its jobs, in milliseconds.
        """
        self._measure(keys=[names.JOB_TIMES], args=[queue, job_ms, _PASS_WEIGHT])

    def read(self) -> dict[str, QueueLoad]:
        """Return the load of every queue that ever had a job.

        It is read in several steps: a job that changes meanwhile may be counted twice or not at all.
        """
        found: dict[str, tuple[int, int, float]] = {}
        start, counted = 0, _PART
        while counted == _PART:
            answer = cast(list[Any], self._depths(keys=[names.PENDING], args=[start, _PART]))
            start, counted = start + _PART, int(answer[0])
            for queue, (queued, running, age_ms) in json.loads(answer[1]).items():
                before = found.get(queue, (0, 0, 0.0))
                found[queue] = (before[0] + int(queued), before[1] + int(running), max(before[2], float(age_ms)))
        times = cast(Mapping[bytes, bytes], self._redis.hgetall(names.JOB_TIMES))
        job_ms = {text(queue): float(ms) for queue, ms in times.items()}
        queues = {text(queue) for queue in cast(set[bytes], self._redis.smembers(names.QUEUES))} | found.keys()
        return {queue: _load(found.get(queue, (0, 0, 0.0)), job_ms.get(queue)) for queue in sorted(queues)}


def _load(counted: tuple[int, int, float], job_ms: float | None) -> QueueLoad:
    queued, running, age_ms = counted
    return QueueLoad(queued, running, age_ms / 1000, None if job_ms is None else job_ms / 1000)
