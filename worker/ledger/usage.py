"""What each tenant has and has done. Torch-free.

Adapters, bytes and jobs are counted in the steps of `worker.ledger.scripts` that change them; requests and predictions here.
"""

from dataclasses import dataclass
from typing import Any

import redis

from worker.errors import LimitReached
from worker.ledger import scripts

LIMITS = ("MAX_ADAPTERS", "MAX_ADAPTER_BYTES", "MAX_EXAMPLE_BYTES", "MAX_JOBS", "MAX_ALIASES", "MAX_REQUESTS_A_MINUTE")

# ARGV tenant, how many, the most of a minute (0: no limit). Returns how many were counted before and the seconds that the minute
# goes on, with nothing done, where there would be more.
_TAKE = """
local second = redis.call('TIME')[1]
local key = 'qs:' .. ARGV[1] .. ':requests:' .. math.floor(second / 60)
local used, most = tonumber(redis.call('GET', key) or 0), tonumber(ARGV[3])
if most > 0 and used + tonumber(ARGV[2]) > most then return {used, 60 - second % 60} end
redis.call('INCRBY', key, ARGV[2])
redis.call('EXPIRE', key, 120)
return {}
"""


@dataclass(frozen=True)
class Used:
    """`adapters`: records, whatever their status; `bytes`: of weights that are ready, and the most that those being made will have;
    `example_bytes`: of the records' examples; `jobs`: unfinished; `adaptations` (jobs taken) and `predictions` (inputs answered)
    since the records began."""

    adapters: int
    aliases: int
    bytes: int
    example_bytes: int
    jobs: int
    requests_this_minute: int
    adaptations: int
    predictions: int


class Usage:
    """Every method may raise `redis.RedisError` where the records are out of reach."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client
        self._used = client.register_script(scripts.USED)
        self._take = client.register_script(_TAKE)

    def of(self, tenant: str) -> Used:
        """All of it, as of one moment; of more than a thousand adapters that expired since somebody looked, bytes of some count
        still."""
        return Used(*map(int, self._used(args=[f"{tenant}/"])))

    def take_requests(self, tenant: str, number: int, most: int = 0) -> None:
        """Count requests of this minute. Raises LimitReached, and counts none, where there would be more than `most` (0: no
        limit)."""
        arguments: list[Any] = [tenant, number, most]
        refused = self._take(args=arguments)
        if refused:
            used, seconds = map(int, refused)
            raise LimitReached("MAX_REQUESTS_A_MINUTE", most, used, retry_after=seconds)

    def add_predictions(self, tenant: str, number: int) -> None:
        """Count inputs that were answered."""
        self._redis.hincrby(f"qs:{tenant}:usage", "predictions", number)
