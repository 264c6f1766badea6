"""Names that point at adapters and can be moved from one to another at once. Torch-free.

`qs:TENANT:alias-targets` says for each alias where it points and since when, `qs:TENANT:alias-names` keeps them in order for pages,
`qs:TENANT:aliases-of:ID` which point at an adapter: none is deleted under one by request, and none outlives its adapter.
"""

import re
from dataclasses import dataclass
from typing import Any, cast

import redis

from worker.errors import ROOM_SECONDS, LimitReached

_ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_ADAPTER_ID = re.compile(r"a[0-9a-f]{40}")

# KEYS aliases of the adapter, targets, names, its record. ARGV alias, adapter id, expected ('*': wherever it points; '': nowhere),
# the key of an adapter's aliases without its id, the most aliases that there may be (0: no limit). Moves an alias. Returns what
# happened, where it pointed before, and how many aliases there are where there may be no more.
_POINT = """
local was = redis.call('HGET', KEYS[2], ARGV[1])
local before = was and string.match(was, '^%w+') or ''
if redis.call('EXISTS', KEYS[4]) == 0 then return {'unknown', before} end
if ARGV[3] ~= '*' and ARGV[3] ~= before then return {'moved', before} end
local most, used = tonumber(ARGV[5]), redis.call('HLEN', KEYS[2])
if not was and most > 0 and used >= most then return {'full', before, used} end
local t = redis.call('TIME')
if was then redis.call('SREM', ARGV[4] .. before, ARGV[1]) end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2] .. ' ' .. t[1] * 1000 + math.floor(t[2] / 1000))
redis.call('ZADD', KEYS[3], 0, ARGV[1])
redis.call('SADD', KEYS[1], ARGV[1])
return {'set', before}
"""

# KEYS targets, names. ARGV alias, the key of an adapter's aliases without its id. 0: unknown.
_UNPOINT = """
local was = redis.call('HGET', KEYS[1], ARGV[1])
if not was then return 0 end
redis.call('SREM', ARGV[2] .. string.match(was, '^%w+'), ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
"""


@dataclass(frozen=True)
class Alias:
    """Where a name points; `updated_at` in ms."""

    alias: str
    adapter_id: str
    updated_at: int


@dataclass(frozen=True)
class Moved:
    """What became of a move: `set`, `unknown` where there is no such adapter, `moved` where the alias does not point where it was
    expected to; and where it pointed before."""

    verdict: str
    previous: str | None


def is_adapter_id(text: str) -> bool:
    return _ADAPTER_ID.fullmatch(text) is not None


def is_alias(text: str) -> bool:
    """Whether it may name an alias: nothing that looks like an adapter's id does."""
    return _ALIAS.fullmatch(text) is not None and not is_adapter_id(text)


class Aliases:
    """The aliases on one Redis, beside the records. Every method may raise `redis.RedisError` where it is out of reach."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client
        self._point = client.register_script(_POINT)
        self._unpoint = client.register_script(_UNPOINT)

    def get(self, tenant: str, alias: str) -> Alias | None:
        found = cast(bytes | None, self._redis.hget(_targets(tenant), alias))
        return None if found is None else _read(alias, found)

    def point(self, tenant: str, alias: str, adapter_id: str, expected: str | None = "*", most: int = 0) -> Moved:
        """Have an alias point at an adapter, in one step with the question where it points now: `*` is anywhere, None nowhere.
        Raises LimitReached where the tenant would have more than `most` aliases (0: no limit)."""
        keys = [*alias_keys(tenant, adapter_id), f"qs:{tenant}:adapter:{adapter_id}"]
        verdict, before, *used = self._point(keys=keys, args=[alias, adapter_id, expected or "", _of(tenant, ""), most])
        if used:
            raise LimitReached("MAX_ALIASES", most, *map(int, used), retry_after=ROOM_SECONDS)
        return Moved(verdict.decode(), before.decode() or None)

    def remove(self, tenant: str, alias: str) -> bool:
        """False where there is no such alias."""
        return bool(self._unpoint(keys=[_targets(tenant), _names(tenant)], args=[alias, _of(tenant, "")]))

    def of(self, tenant: str, adapter_id: str) -> list[str]:
        """Which point at an adapter."""
        return sorted(name.decode() for name in cast(set[bytes], self._redis.smembers(_of(tenant, adapter_id))))

    def page(self, tenant: str, limit: int, after: str | None) -> tuple[list[Alias], str | None]:
        """Aliases of a tenant by name, and the cursor of the next page (None at the end)."""
        start = "-" if after is None else f"({after}"
        names = cast(list[bytes], self._redis.zrangebylex(_names(tenant), start, "+", start=0, num=limit + 1))
        chosen = [name.decode() for name in names[:limit]]
        targets: list[Any] = cast(list[Any], self._redis.hmget(_targets(tenant), chosen)) if chosen else []
        found = [_read(name, target) for name, target in zip(chosen, targets, strict=True) if target is not None]
        return found, chosen[-1] if len(names) > limit else None


def alias_keys(tenant: str, adapter_id: str) -> list[str]:
    """What scripts that touch an adapter's aliases are given."""
    return [_of(tenant, adapter_id), _targets(tenant), _names(tenant)]


def _of(tenant: str, adapter_id: str) -> str:
    return f"qs:{tenant}:aliases-of:{adapter_id}"


def _targets(tenant: str) -> str:
    return f"qs:{tenant}:alias-targets"


def _names(tenant: str) -> str:
    return f"qs:{tenant}:alias-names"


def _read(alias: str, found: bytes) -> Alias:
    adapter_id, since = found.decode().split(" ")
    return Alias(alias, adapter_id, int(since))
