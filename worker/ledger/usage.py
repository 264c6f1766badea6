"""The usage of each tenant, and its limits.

The Lua scripts that change adapters, bytes and jobs also count them (`lua/shared/tenant.lua`). Their limits are checked when a job
is accepted (`lua/accept.lua`). This module counts requests and predictions.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import redis

from worker.errors import LimitReached
from worker.ledger import names, scripts

LIMITS = (
    "MAX_ADAPTERS",
    "MAX_ADAPTER_BYTES",
    "MAX_EXAMPLE_BYTES",
    "MAX_JOBS",
    "MAX_ALIASES",
    "MAX_REQUESTS_A_MINUTE",
    "MAX_STREAMS",
    "MAX_TENANT_BODIES_BYTES",
)
"""The limits of a tenant, by the names of their settings. A tenant may have its own ones (`tenants.py`). The last two hold for one
process of the service, the others for the whole deployment."""
LimitsOf = Callable[[str], Mapping[str, int]]
"""Returns the limits of a tenant by name, 0 for no limit. It does not block."""


@dataclass(frozen=True)
class Used:
    """The usage of one tenant.

    `adapters`: records of any status. `bytes`: size of ready weights, plus the largest possible size of weights that are being
    adapted. `example_bytes`: size of the examples in all records. `jobs`: unfinished jobs. `adaptations` and `predictions`: all
    jobs accepted and all inputs predicted so far.
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

        If more than a thousand adapters have expired since the last call, `bytes` still includes some of them.
        """
        return Used(*map(int, self._used(args=[f"{tenant}/"])))

    def take_requests(self, tenant: str, number: int, most: int = 0) -> None:
        """Add `number` requests to the tenant's count for the current minute.

        Raises LimitReached and adds nothing if the minute would have more than `most` requests (0: no limit).
        """
        self.take_block(tenant, number, number, most)

    def take_block(self, tenant: str, number: int, wanted: int, most: int, given_back: int = 0) -> tuple[int, float]:
        """Add a block of requests to the tenant's count for the current minute.

        It has `wanted` requests, or as many as the limit leaves but at least `number`. First, `given_back` requests of an earlier
        block of this minute are subtracted.
        Returns how many were added, and the seconds until the minute ends. Raises LimitReached and adds nothing if the minute would
        have more than `most` requests (0: no limit) with `number` further ones.
        """
        arguments: list[Any] = [tenant, number, most, wanted, given_back]
        added, ms, *used = map(int, self._take(args=arguments))
        if used:
            raise LimitReached("MAX_REQUESTS_A_MINUTE", most, used[0], retry_after=max(1, math.ceil(ms / 1000)))
        return added, ms / 1000

    def add_predictions(self, tenant: str, number: int) -> None:
        """Add `number` inputs to the tenant's count of predictions."""
        self._redis.hincrby(names.usage(tenant), "predictions", number)
