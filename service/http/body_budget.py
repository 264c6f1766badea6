"""The bytes of request bodies that this process holds, limited in total and for each tenant."""

from collections import Counter

from service.errors import Unavailable
from worker.errors import LimitReached
from worker.ledger.usage import LimitsOf

_RETRY_SECONDS = 2
_LIMIT = "MAX_TENANT_BODIES_BYTES"


class BodyBudget:
    """Counts the bytes of bodies from before they are read until their requests end.

    `most`: of all tenants, 0 for no limit. The limit of one tenant is MAX_TENANT_BODIES_BYTES. A body of any size is accepted if
    no other one is held. So every body that MAX_BODY_BYTES allows is possible, whatever these limits are. Must be used on the
    event loop.
    """

    def __init__(self, most: int, limits_of: LimitsOf) -> None:
        self._most, self._limits_of = most, limits_of
        self._held = Counter[str]()

    def held(self, tenant: str) -> int:
        """Return the bytes of a tenant's bodies that are held now."""
        return self._held[tenant]

    def reserve(self, tenant: str, size: int, own: int = 0) -> None:
        """Add `size` bytes to a body that already has `own` reserved bytes.

        Raises LimitReached if the tenant would have more than its share, and Unavailable if all tenants together would have more
        than the total; then nothing is added.
        """
        of_tenant, of_all = self._held[tenant] - own, self._held.total() - own
        most_of_tenant = self._limits_of(tenant).get(_LIMIT, 0)
        if most_of_tenant and of_tenant and self._held[tenant] + size > most_of_tenant:
            raise LimitReached(_LIMIT, most_of_tenant, of_tenant, retry_after=_RETRY_SECONDS)
        if self._most and of_all and self._held.total() + size > self._most:
            raise Unavailable(f"request bodies of {of_all} bytes are being handled: expected at most {self._most}", _RETRY_SECONDS)
        self._held[tenant] += size

    def release(self, tenant: str, size: int) -> None:
        """Subtract the bytes of a body whose request has ended."""
        self._held[tenant] -= size
        if not self._held[tenant]:
            del self._held[tenant]
