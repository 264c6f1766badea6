"""Collect in memory how long passes and their stages took, and write it to the records once a second.

Each write takes as long as a disk write, during which the server answers nobody. Right after a commit, the service that waits for
the job would wait for it.
"""

import logging
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence

import redis

from worker.ledger.records import Records

log = logging.getLogger(__name__)


class PassTimes:
    """Collects times until `write` writes them. Thread-safe.

    A worker that is killed loses the times of its last second.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self._lock = threading.Lock()
        self._stages: defaultdict[str, list[float]] = defaultdict(list)
        self._passes: list[tuple[str, float]] = []

    def add_stages(self, stages_ms: Mapping[str, Sequence[float]]) -> None:
        """Add stage durations of ended jobs, {stage: durations in ms}, for the histograms of `/metrics`."""
        with self._lock:
            for stage, times in stages_ms.items():
                self._stages[stage] += times

    def add_pass(self, queue: str, job_ms: float) -> None:
        """Add the duration of a pass, in ms for each of its jobs, to the average of its queue."""
        with self._lock:
            self._passes.append((queue, job_ms))

    def write(self) -> None:
        """Write what was collected since the last call. If the records cannot be reached, it is lost."""
        with self._lock:
            stages, passes = self._stages, self._passes
            self._stages, self._passes = defaultdict(list), []
        try:
            for queue, job_ms in passes:
                self._records.queue_loads.observe(queue, job_ms)
            if stages:
                self._records.counts.observe(stages)
        except redis.RedisError as error:
            log.warning("the times of %d passes are not counted: %s", len(passes), type(error).__name__)
