"""The limits of tenants as the service uses them: their own ones, or else the defaults."""

from collections.abc import Mapping

from service.http.shared_reads import SharedReads
from worker.ledger.api_keys import KEY_CACHE_SECONDS
from worker.ledger.tenants import Tenants


class CachedTenants:
    """Caches the settings of tenants, so that a change takes effect within KEY_CACHE_SECONDS.

    The middleware refreshes the tenant of each request before everything else. After that, its limits can be read on the event loop
    and in threads without waiting for Redis. `defaults`: the limits of tenants without own ones, by name.
    """

    def __init__(self, tenants: Tenants, defaults: Mapping[str, int]) -> None:
        self._settings, self._defaults = SharedReads(tenants.get, KEY_CACHE_SECONDS), defaults

    async def refresh(self, tenant: str) -> None:
        """Read a tenant's settings, unless the cached ones may still be used. Raises redis.RedisError."""
        await self._settings.get(tenant)

    def limits_of(self, tenant: str) -> Mapping[str, int]:
        """Return the limits that hold for a tenant, by name; 0: no limit.

        The tenant must have been refreshed within the last hour.
        """
        return {**self._defaults, **self._settings.latest(tenant).limits}

    def share_of(self, tenant: str) -> int:
        """Return how large a tenant's turn is, in comparison with others.

        The tenant must have been refreshed within the last hour.
        """
        return self._settings.latest(tenant).share
