"""The counts and histograms for `/metrics`, stored in Redis.

They include everything since the deployment began.

This module writes only the stage durations of ended jobs. The Lua scripts increment all other counts, each in the same atomic step
as the event that it counts.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import redis

from worker.ledger import names
from worker.ledger.names import text

JOB_STAGES = ("queue", "tokenize", "inner_loop", "inner_step", "store")
STAGE_BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 120_000)
"""Upper bounds of the buckets of the stage-duration histograms, in milliseconds."""
RECOVERY_BOUNDS_MS = (1_000, 2_500, 5_000, 10_000, 20_000, 40_000, 80_000, 160_000)
"""Upper bounds of the buckets of the recovery histogram, in milliseconds. A recovery lasts from the last sign of life of a lost
worker to the end of its job."""


class Counts:
    """Adds to the counts in Redis and reads them.

    Every method raises `redis.RedisError` if Redis cannot be reached.
    """

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client

    def observe(self, stages_ms: Mapping[str, Sequence[float]]) -> None:
        """Add stage durations of ended jobs to the histograms. `stages_ms`: {stage: durations in ms}.

        Redis stores for each stage the number of durations, their sum in microseconds, and for each bound the number of durations
        up to that bound.
        """
        sums: Counter[str] = Counter()
        for stage, times in stages_ms.items():
            sums[f"stage_{stage}_count"] += len(times)
            sums[f"stage_{stage}_us"] += round(1e3 * sum(times))
            sums.update(f"stage_{stage}_le_{bound}" for time in times for bound in STAGE_BOUNDS_MS if time <= bound)
        with self._redis.pipeline(transaction=False) as pipe:
            for name, amount in sums.items():
                pipe.hincrby(names.COUNTS, name, amount)
            pipe.execute()

    def read(self) -> dict[str, int]:
        """Return all counts by name.

        Two more entries, `now_queued` and `now_running`, are the current numbers of queued and running jobs.
        """
        with self._redis.pipeline() as pipe:
            pipe.hgetall(names.COUNTS)
            pipe.zcard(names.PENDING)
            pipe.zcard(names.RUNNING)
            counted, pending, running = pipe.execute()
        counts = {text(name): int(value) for name, value in counted.items()}
        return {**counts, "now_queued": max(0, pending - running), "now_running": running}
