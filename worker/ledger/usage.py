"""Usage of each tenant, and its limits.

Adapters, bytes and jobs are counted in the scripts that change them (`lua/shared/tenant.lua`), and their limits are checked when
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
    """The usage of one tenant.

    `adapters`: records of any status. `bytes`: size of ready weights, plus the largest possible size of weights that are being
    adapted. `example_bytes`: size of the examples in all records. `jobs`: unfinished jobs. `adaptations` and `predictions`: all
    jobs accepted and all inputs answered so far.
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
    """Counts and reads usage. Every method raises `redis.RedisError` if the records cannot be reached."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client
        self._used = scripts.register(client, "usage")
        self._take = scripts.register(client, "take_requests")

    def of(self, tenant: str) -> Used:
        """Return the usage of a tenant, read atomically.

        If more than a thousand adapters have expired since the last call, the bytes of some of them are still counted.
        """
        return Used(*map(int, self._used(args=[f"{tenant}/"])))

    def take_requests(self, tenant: str, number: int, most: int = 0) -> None:
        """Count `number` requests in the current minute.

        Raises LimitReached, without counting any, if the minute would have more than `most` requests (0: no limit).
        """
        arguments: list[Any] = [tenant, number, most]
        refused = self._take(args=arguments)
        if refused:
            used, seconds = map(int, refused)
            raise LimitReached("MAX_REQUESTS_A_MINUTE", most, used, retry_after=seconds)

    def add_predictions(self, tenant: str, number: int) -> None:
        """Count `number` inputs that were answered."""
        self._redis.hincrby(names.usage(tenant), "predictions", number)
