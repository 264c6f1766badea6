"""What each tenant has and has done, and the limits on it. Torch-free.

Adapters, bytes and jobs are counted in the scripts that change them (`lua/shared/tenant.lua`), and their limits are checked where
a job is accepted (`lua/accept.lua`). Requests and predictions are counted here.
"""

from dataclasses import dataclass
from typing import Any

import redis

from worker.errors import LimitReached
from worker.ledger import names, scripts

LIMITS = ("MAX_ADAPTERS", "MAX_ADAPTER_BYTES", "MAX_EXAMPLE_BYTES", "MAX_JOBS", "MAX_ALIASES", "MAX_REQUESTS_A_MINUTE")


@dataclass(frozen=True)
class Used:
    """What a tenant uses.

    `adapters`: records of any status. `bytes`: of weights that are ready, and the most that those being adapted can have.
    `example_bytes`: of the records' examples. `jobs`: unfinished ones. `adaptations` (jobs accepted) and `predictions` (inputs
    answered) count since the records began.
    """

    adapters: int
    aliases: int
    bytes: int
    example_bytes: int
    jobs: int
    requests_this_minute: int
    adaptations: int
    predictions: int


class Usage:
    """Read and count usage. Every method may raise `redis.RedisError` if the records cannot be reached."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client
        self._used = scripts.register(client, "usage")
        self._take = scripts.register(client, "take_requests")

    def of(self, tenant: str) -> Used:
        """Return what a tenant uses, all read at one moment.

        If more than a thousand adapters have expired since the last call, bytes of some of them are still counted.
        """
        return Used(*map(int, self._used(args=[f"{tenant}/"])))

    def take_requests(self, tenant: str, number: int, most: int = 0) -> None:
        """Count requests of this minute. Raises LimitReached, and counts none, if there would be more than `most` (0: no limit)."""
        arguments: list[Any] = [tenant, number, most]
        refused = self._take(args=arguments)
        if refused:
            used, seconds = map(int, refused)
            raise LimitReached("MAX_REQUESTS_A_MINUTE", most, used, retry_after=seconds)

    def add_predictions(self, tenant: str, number: int) -> None:
        """Count inputs that were answered."""
        self._redis.hincrby(names.usage(tenant), "predictions", number)
