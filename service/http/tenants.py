"""The limits of tenants as the service uses them: their own ones, or else the defaults."""

import time
from collections.abc import Mapping

from starlette.concurrency import run_in_threadpool

from worker.ledger.api_keys import KEY_CACHE_SECONDS
from worker.ledger.tenants import Tenants, TenantSettings


class CachedTenants:
    """Caches the settings of tenants, so that a change takes effect within KEY_CACHE_SECONDS.

    The middleware refreshes the tenant of each request before everything else. After that, its limits can be read on the event loop
    and in threads without waiting for Redis. `defaults`: the limits of tenants without own ones, by name.
    """

    def __init__(self, tenants: Tenants, defaults: Mapping[str, int]) -> None:
        self._tenants, self._defaults = tenants, defaults
        self._cached: dict[str, tuple[float, TenantSettings]] = {}  # the `time.monotonic` until which they may be used

    async def refresh(self, tenant: str) -> None:
        """Read a tenant's settings, unless the cached ones may still be used. Raises redis.RedisError."""
        began = time.monotonic()
        if tenant not in self._cached or began >= self._cached[tenant][0]:
            settings = await run_in_threadpool(self._tenants.get, tenant)
            self._cached[tenant] = (began + KEY_CACHE_SECONDS, settings)

    def limits_of(self, tenant: str) -> Mapping[str, int]:
        """Return the limits that hold for a tenant, by name; 0: no limit.

        The tenant must have been refreshed once.
        """
        return {**self._defaults, **self._cached[tenant][1].limits}

    def share_of(self, tenant: str) -> int:
        """Return how large a tenant's turn is, in comparison with others.

        The tenant must have been refreshed once.
        """
        return self._cached[tenant][1].share
