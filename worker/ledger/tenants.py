"""Own limits and shares of tenants, which apply in place of the defaults.

They are fields of one Redis hash, `qs:tenants`, by tenant, each as JSON: `{"limits": {"MAX_JOBS": 50}, "share": 2}`.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import redis

from worker.errors import InvalidLimit
from worker.ledger import audit, names, scripts
from worker.ledger.api_keys import check_tenant
from worker.ledger.names import text
from worker.ledger.usage import LIMITS

DEFAULT_SHARE = 1
MOST_LIMIT, MOST_SHARE = 10**15, 1000
"""The largest values of a limit and of a share."""


@dataclass(frozen=True)
class TenantSettings:
    """The settings that a tenant has of its own.

    `limits`: its own limits by name, 0 for no limit; a limit that is missing is the service's default. `share`: how large the
    tenant's turn is, in comparison with the turns of others.
    """

    limits: Mapping[str, int] = field(default_factory=dict)
    share: int = DEFAULT_SHARE


class Tenants:
    """Stores the settings of tenants in Redis.

    Every method raises `redis.RedisError` if Redis cannot be reached.
    """

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client
        self._unset = scripts.register(client, "unset")

    def get(self, tenant: str) -> TenantSettings:
        """Return the settings that a tenant has of its own."""
        stored = cast(bytes | None, self._redis.hget(names.TENANTS, tenant))
        return TenantSettings() if stored is None else _parse(stored)

    def all(self) -> dict[str, TenantSettings]:
        """Return the settings of every tenant that has some of its own, sorted by tenant."""
        stored = cast(dict[bytes, bytes], self._redis.hgetall(names.TENANTS))
        return {tenant: _parse(content) for tenant, content in sorted((text(name), value) for name, value in stored.items())}

    def change(self, tenant: str, limits: Mapping[str, int], share: int | None = None) -> TenantSettings:
        """Set some of a tenant's settings, and return all of its own.

        Settings that are not given stay as they are. `share`: None leaves it unchanged. Raises InvalidKey if `tenant` is no name of
        a tenant, and InvalidLimit for a value that is not allowed.
        """
        check_tenant(tenant)
        for name, value in limits.items():
            if name not in LIMITS or not 0 <= value <= MOST_LIMIT:
                raise InvalidLimit(name, f"one of {', '.join(LIMITS)}, from 0 to {MOST_LIMIT}", value)
        if share is not None and not 1 <= share <= MOST_SHARE:
            raise InvalidLimit("share", f"1 to {MOST_SHARE}", share)
        given = {**limits, **({} if share is None else {"share": share})}
        changed: list[TenantSettings] = []

        def write(pipe: "redis.client.Pipeline") -> None:
            old = _read(pipe, tenant)
            changed[:] = [TenantSettings({**old.limits, **limits}, old.share if share is None else share)]
            pipe.multi()
            pipe.hset(names.TENANTS, tenant, _dump(changed[0]))
            audit.record_in(pipe, tenant, "limits.set", tenant, given)

        self._redis.transaction(write, names.TENANTS)
        return changed[0]

    def reset(self, tenant: str, what: Iterable[str] = ()) -> bool:
        """Give a tenant the defaults again. Return False if it had no such settings of its own.

        `what`: names of limits, and `share`; empty for all of its settings. Works even on a server that is out of memory.
        """
        while True:
            stored = cast(bytes | None, self._redis.hget(names.TENANTS, tenant))
            old = TenantSettings() if stored is None else _parse(stored)
            own = [*old.limits, *(["share"] if old.share != DEFAULT_SHARE else [])]
            found = [name for name in own if name in (tuple(what) or own)]
            if not found:
                return False
            limits = {name: value for name, value in old.limits.items() if name not in found}
            left = TenantSettings(limits, DEFAULT_SHARE if "share" in found else old.share)
            new_value = "" if left == TenantSettings() else _dump(left)
            details = json.dumps({"names": found})
            arguments: list[Any] = [tenant, stored or b"", new_value, audit.script_context(tenant), "limits.unset", tenant, details]
            if self._unset(keys=[names.TENANTS], args=arguments):
                return True


def is_allowed(stored: str) -> bool:
    """Return True if these are settings that `change` could have stored, in this version or a later one.

    Raises ValueError for what is no JSON.
    """
    content = json.loads(stored)
    limits, share = (content.get("limits", {}), content.get("share", DEFAULT_SHARE)) if isinstance(content, dict) else (None, None)
    return (
        isinstance(limits, dict)
        and all(type(value) is int and 0 <= value <= MOST_LIMIT for value in limits.values())
        and type(share) is int
        and 1 <= share <= MOST_SHARE
    )


def _read(pipe: "redis.client.Pipeline", tenant: str) -> TenantSettings:
    stored = cast(Any, pipe.hget(names.TENANTS, tenant))
    return TenantSettings() if stored is None else _parse(stored)


def _parse(stored: bytes) -> TenantSettings:
    """Parse stored settings. Limits of later versions are left out."""
    content = json.loads(stored)
    limits = {name: int(value) for name, value in content.get("limits", {}).items() if name in LIMITS}
    return TenantSettings(limits, int(content.get("share", DEFAULT_SHARE)))


def _dump(settings: TenantSettings) -> str:
    share = {} if settings.share == DEFAULT_SHARE else {"share": settings.share}
    return json.dumps({"limits": dict(settings.limits), **share})
