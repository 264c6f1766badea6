"""Aliases: names that point at adapters and can be moved from one adapter to another atomically.

An adapter that aliases point at cannot be deleted by request. If its record is removed for another reason, such as expiry, its
aliases are removed too.
"""

import re
from dataclasses import dataclass
from typing import Any, cast

import redis

from worker.errors import ROOM_SECONDS, LimitReached
from worker.ledger import audit, names, scripts

_ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
HISTORY = 20
"""The largest number of earlier adapters that are kept for an alias."""
_ADAPTER_ID = re.compile(r"a[0-9a-f]{40}")


@dataclass(frozen=True)
class Alias:
    """An alias and the adapter that it points at. `updated_at`: Unix time of its last move, in ms."""

    alias: str
    adapter_id: str
    updated_at: int


@dataclass(frozen=True)
class Moved:
    """The result of moving an alias.

    `verdict` is `set` if this call pointed the alias at the adapter. Otherwise the alias is unchanged: `unknown` means that there
    is no such adapter, and `moved` that the alias did not point where the caller expected, for example because another call had
    moved it. `previous` is the adapter that the alias pointed at before this call, or None if the alias did not exist.
    """

    verdict: str
    previous: str | None


@dataclass(frozen=True)
class RolledBack:
    """The result of rolling an alias back.

    `verdict` is `set` if the alias now points at `adapter_id`, and pointed at `previous` before. Otherwise nothing changed:
    `unknown` means that there is no such alias, and `none` that no adapter of its history is usable.
    """

    verdict: str
    adapter_id: str
    previous: str


def is_adapter_id(text: str) -> bool:
    return _ADAPTER_ID.fullmatch(text) is not None


def is_alias(text: str) -> bool:
    """Return True if `text` is allowed as an alias. Text in the form of an adapter id is not allowed."""
    return _ALIAS.fullmatch(text) is not None and not is_adapter_id(text)


class Aliases:
    """Stores aliases in Redis, beside the records.

    Every method raises `redis.RedisError` if Redis cannot be reached.
    """

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client
        self._point = scripts.register(client, "point_alias")
        self._remove = scripts.register(client, "remove_alias")
        self._roll_back = scripts.register(client, "roll_back_alias")

    def get(self, tenant: str, alias: str) -> Alias | None:
        stored = cast(bytes | None, self._redis.hget(names.alias_targets(tenant), alias))
        return None if stored is None else _parse_alias(alias, stored)

    def point(self, tenant: str, alias: str, adapter_id: str, expected: str | None = "*", most: int = 0) -> Moved:
        """Point an alias at an adapter, atomically, if the alias currently points at `expected`.

        `expected`: an adapter id, `*` for no condition, or None if the alias must not exist yet. Raises LimitReached if the
        tenant would have more than `most` aliases (0: no limit).
        """
        keys = [*names.alias_keys(tenant, adapter_id), names.record(tenant, adapter_id), names.alias_history(tenant, alias)]
        arguments: list[Any] = [
            alias,
            adapter_id,
            expected or "",
            names.aliases_of(tenant, ""),
            most,
            HISTORY,
            audit.script_context(tenant),
        ]
        verdict, previous, *used = self._point(keys=keys, args=arguments)
        if used:
            raise LimitReached("MAX_ALIASES", most, *map(int, used), retry_after=ROOM_SECONDS)
        moved = Moved(verdict.decode(), previous.decode() or None)
        if moved.verdict == "set" and moved.previous != adapter_id:
            audit.log_change("alias.moved", alias)
        return moved

    def remove(self, tenant: str, alias: str) -> bool:
        """Remove an alias. Return False if there is no such alias."""
        keys = [names.alias_targets(tenant), names.alias_names(tenant), names.alias_history(tenant, alias)]
        removed = bool(self._remove(keys=keys, args=[alias, names.aliases_of(tenant, ""), audit.script_context(tenant)]))
        if removed:
            audit.log_change("alias.removed", alias)
        return removed

    def history(self, tenant: str, alias: str) -> list[Alias]:
        """Return where an alias pointed before, the latest first, and since when it did so."""
        stored = cast(list[bytes], self._redis.lrange(names.alias_history(tenant, alias), 0, -1))
        return [_parse_alias(alias, entry) for entry in stored]

    def roll_back(self, tenant: str, alias: str) -> RolledBack:
        """Point an alias at the latest adapter of its history that is usable, atomically.

        An adapter that was deleted, has failed or has expired is not usable.

        The adapter that it points at now does not enter the history, so that another call goes further back.
        """
        keys = [names.alias_targets(tenant), names.alias_history(tenant, alias)]
        arguments = [alias, names.aliases_of(tenant, ""), names.record(tenant, ""), audit.script_context(tenant)]
        verdict, target, previous = self._roll_back(keys=keys, args=arguments)
        done = RolledBack(verdict.decode(), target.decode(), previous.decode())
        if done.verdict == "set":
            audit.log_change("alias.rolled_back", alias)
        return done

    def of(self, tenant: str, adapter_id: str) -> list[str]:
        """Return the aliases that point at an adapter, sorted."""
        return sorted(name.decode() for name in cast(set[bytes], self._redis.smembers(names.aliases_of(tenant, adapter_id))))

    def page(self, tenant: str, limit: int, after: str | None) -> tuple[list[Alias], str | None]:
        """Return up to `limit` aliases of a tenant, sorted by name, and the cursor of the next page.

        `after`: the cursor that the previous page returned, or None for the first page. The last page returns the cursor None.
        """
        start = "-" if after is None else f"({after}"
        listed = cast(list[bytes], self._redis.zrangebylex(names.alias_names(tenant), start, "+", start=0, num=limit + 1))
        chosen = [name.decode() for name in listed[:limit]]
        targets: list[Any] = cast(list[Any], self._redis.hmget(names.alias_targets(tenant), chosen)) if chosen else []
        aliases = [_parse_alias(name, target) for name, target in zip(chosen, targets, strict=True) if target is not None]
        return aliases, chosen[-1] if len(listed) > limit else None


def _parse_alias(alias: str, stored: bytes) -> Alias:
    adapter_id, updated_at = stored.decode().split(" ")
    return Alias(alias, adapter_id, int(updated_at))
