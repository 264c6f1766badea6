"""The limits of tenants as the service uses them: their own ones, or else the defaults."""

import time
from collections.abc import Mapping

from service.http.shared_reads import SharedReads
from worker.ledger.api_keys import KEY_CACHE_SECONDS
from worker.ledger.tenants import Tenants, TenantSettings

KEEP_SECONDS = 3600.0
"""Time since the last refresh after which the settings of a tenant are dropped. It is longer than any request lasts."""


class CachedTenants:
    """Caches the settings of tenants, so that a change takes effect within KEY_CACHE_SECONDS.

    The middleware refreshes the tenant of each request before everything else. After that, its limits can be read on the event loop
    and in threads without waiting for Redis. `defaults`: the limits of tenants without own ones, by name.
    """

    def __init__(self, tenants: Tenants, defaults: Mapping[str, int]) -> None:
        self._reads, self._defaults = SharedReads(tenants.get), defaults
        self._cached: dict[str, tuple[float, TenantSettings]] = {}  # with the `time.monotonic` at which they were read
        self._prune_at = 0.0

    async def refresh(self, tenant: str) -> None:
        """Read a tenant's settings, unless the cached ones may still be used. Raises redis.RedisError."""
        if tenant not in self._cached or time.monotonic() >= self._cached[tenant][0] + KEY_CACHE_SECONDS:
            self._cached[tenant] = await self._reads.get(tenant)
            self._prune(self._cached[tenant][0])

    def limits_of(self, tenant: str) -> Mapping[str, int]:
        """Return the limits that hold for a tenant, by name; 0: no limit.

        The tenant must have been refreshed within the last hour.
        """
        return {**self._defaults, **self._cached[tenant][1].limits}

    def share_of(self, tenant: str) -> int:
        """Return how large a tenant's turn is, in comparison with others.

        The tenant must have been refreshed within the last hour.
        """
        return self._cached[tenant][1].share

    def _prune(self, now: float) -> None:
        """Drop the settings of tenants without requests for an hour, at most once an hour."""
        if now >= self._prune_at:
            self._prune_at = now + KEEP_SECONDS
            self._cached = {tenant: cached for tenant, cached in self._cached.items() if cached[0] > now - KEEP_SECONDS}
