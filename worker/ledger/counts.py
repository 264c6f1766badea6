"""What has happened since the records began, counted beside them for `/metrics`, and the bounds of its histograms. Torch-free.

The Lua scripts count each event in the step that causes it; only the times of ended jobs are counted from here.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import redis

from worker.ledger import names
from worker.ledger.names import text

JOB_STAGES = ("queue", "tokenize", "inner_loop", "inner_step", "store")
STAGE_BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 120_000)
"""Upper bounds of the histogram of a job's stages."""
RECOVERY_BOUNDS_MS = (1_000, 2_500, 5_000, 10_000, 20_000, 40_000, 80_000, 160_000)
"""Upper bounds of the histogram of recoveries: from the last sign of a lost worker to the end of its job."""


class Counts:
    """Add to and read the counts on one Redis. Every method may raise `redis.RedisError` if it cannot be reached."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client

    def observe(self, stages_ms: Mapping[str, Sequence[float]]) -> None:
        """Count milliseconds by stage of ended jobs: how many, their sum, and how many are within each bound."""
        sums: Counter[str] = Counter()
        for stage, times in stages_ms.items():
            sums[f"stage_{stage}_count"] += len(times)
            sums[f"stage_{stage}_us"] += round(1e3 * sum(times))
            sums.update(f"stage_{stage}_le_{bound}" for spent in times for bound in STAGE_BOUNDS_MS if spent <= bound)
        with self._redis.pipeline(transaction=False) as pipe:
            for name, by in sums.items():
                pipe.hincrby(names.COUNTS, name, by)
            pipe.execute()

    def read(self) -> dict[str, int]:
        """Return what has happened, by name, and how many jobs are queued (`now_queued`) and running (`now_running`)."""
        with self._redis.pipeline() as pipe:
            pipe.hgetall(names.COUNTS)
            pipe.zcard(names.PENDING)
            pipe.zcard(names.RUNNING)
            counted, pending, running = pipe.execute()
        happened = {text(name): int(value) for name, value in counted.items()}
        return {**happened, "now_queued": max(0, pending - running), "now_running": running}
