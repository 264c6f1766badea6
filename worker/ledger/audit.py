"""The audit log: who changed what, and when. It is stored beside the records, in Redis streams.

A change and its entry are written in one atomic step, by the Lua script or the transaction that makes the change. So no change goes
unrecorded, and no entry is written for a change that was refused. Only a restore and a rewriting of all values take many steps:
their entries are written at the end. Entries name things by their ids and aliases. They contain no examples, texts, labels or
secrets.

Changes by requests of a tenant are in that tenant's stream. Changes by a command line are in the stream of the deployment and, if
they concern a tenant, in that tenant's stream too. So a tenant that makes many changes can push out only entries of its own stream,
and neither those of other tenants nor what operators did.

Code that changes something does not pass on who it acts for: `acting` sets the actor for everything within its block.
"""

import heapq
import json
import logging
import os
import pwd
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import redis

from worker.ledger import names
from worker.ledger.names import text
from worker.logs import current_request, fields

log = logging.getLogger(__name__)
Action = Literal[
    "key.created",
    "key.rotated",
    "key.revoked",
    "adapter.deleted",
    "alias.moved",
    "alias.rolled_back",
    "alias.removed",
    "initialization.moved",
    "initialization.reset",
    "initialization.forgotten",
    "limits.set",
    "limits.unset",
    "job.retried",
    "encryption.applied",
    "backup.restored",
]
ACTIONS: tuple[Action, ...] = get_args(Action)
MOST_OF_DEPLOYMENT, MOST_OF_TENANT = 100_000, 10_000
"""The numbers of entries that the stream of the deployment, and that of one tenant, keep at least. Redis removes older entries, a
hundred or so at a time."""
ActorKind = Literal["key", "no key", "command line", "process"]
_AT_ONCE = 500


@dataclass(frozen=True)
class Actor:
    """The author of a change.

    Arguments:
        kind: `key` and `no key` are requests with and without an API key, `process` is a process of the deployment by itself, such
            as a worker that removes an old record.
        identity: the id of the API key, or the name of the operating system's user.
        address: the address that the request came from.
    """

    kind: ActorKind
    identity: str = ""
    address: str = ""


_PROCESS = Actor("process")
_actor: ContextVar[Actor | None] = ContextVar("actor", default=None)


@contextmanager
def acting(actor: Actor) -> Iterator[None]:
    """Record all changes that this thread or task makes within the block as changes by `actor`."""
    token = _actor.set(actor)
    try:
        yield
    finally:
        _actor.reset(token)


def command_line() -> Actor:
    """Return the actor of a command that the current user of the operating system runs."""
    try:
        return Actor("command line", pwd.getpwuid(os.getuid()).pw_name)
    except KeyError:  # a container may run as a user id without a name
        return Actor("command line", f"uid {os.getuid()}")


@dataclass(frozen=True)
class Entry:
    """One entry of the audit log.

    Arguments:
        identity: its id in its stream, which begins with its time.
        time: when the change was made, as a Unix time in ms.
        tenant: the tenant that the change concerns; empty if it concerns the whole deployment.
        action: what was done, one of ACTIONS or an action of a later version.
        subject: the id of the key or adapter, the alias, the name of the initialization or backup, or the tenant.
        actor: who did it.
        request: the id of the request; empty for changes without one.
        details: further values, such as the adapter that an alias pointed at before.
    """

    identity: str
    time: int
    tenant: str
    action: str
    subject: str
    actor: Actor
    request: str
    details: Mapping[str, Any] = field(default_factory=dict)


def script_context(tenant: str) -> str:
    """Return the argument with which a Lua script calls `audit` for a change of this tenant's data.

    See `lua/shared/audit.lua`.
    """
    return json.dumps({"tenant": tenant, "actor": _actor_json(), "streams": _streams(tenant)})


def record_in(pipe: "redis.client.Pipeline", tenant: str, action: Action, subject: str, details: Mapping[str, Any]) -> None:
    """Add an entry to the transaction that makes the change.

    `tenant`: empty for a change of the whole deployment.
    """
    entry = {"action": action, "tenant": tenant, "subject": subject, "actor": _actor_json(), "details": json.dumps(details)}
    for stream, most in _streams(tenant):
        pipe.xadd(stream, cast(dict[Any, Any], entry), maxlen=most, approximate=True)


def log_change(action: Action, subject: str) -> None:
    """Write a log line about a change that was made and recorded."""
    actor = _current()
    with fields(action=action, subject=subject, by=actor.kind, address=actor.address):
        log.info("changed")


class AuditLog:
    """Reads the audit log. Every method raises `redis.RedisError` if Redis cannot be reached."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client

    def page(
        self, tenant: str, limit: int, before: str | None = None, action: str | None = None, most: int = 1000
    ) -> tuple[list[Entry], str | None]:
        """Return up to `limit` entries that concern a tenant, newest first, and the cursor of the next page.

        `before`: the cursor that the previous page returned, or None for the first page. The last page returns the cursor None. A
        page ends after reading `most` entries, so with `action`, a filter, it may be short although more pages follow.
        """
        found: list[Entry] = []
        end = "+" if before is None else f"({before}"
        number = limit if action is None else most
        rows = cast(list[Any], self._redis.xrevrange(names.tenant_audit(tenant), end, "-", count=number))
        for row in rows:
            entry = _parse(row)
            if action in (None, entry.action):
                found.append(entry)
            if len(found) == limit:
                return found, entry.identity
        return found, _parse(rows[-1]).identity if len(rows) == number else None

    def since(self, time: int, tenant: str | None = None) -> Iterator[Entry]:
        """Yield all entries since a Unix time in ms, the oldest first.

        `tenant`: only entries that concern this tenant.
        """
        if tenant is None:
            streams = sorted(text(key) for key in self._redis.scan_iter(names.tenant_audit("*"), count=1000, _type="stream"))
        else:
            streams = [names.tenant_audit(tenant)]
        # A tenant's stream repeats the entries of command lines, so that the tenant's own administrators see them.
        of_tenants = ((entry for entry in self._read(stream, time) if entry.actor.kind != "command line") for stream in streams)
        of_deployment = (entry for entry in self._read(names.AUDIT, time) if tenant in (None, entry.tenant))
        return heapq.merge(of_deployment, *of_tenants, key=lambda entry: entry.time)

    def _read(self, stream: str, time: int) -> Iterator[Entry]:
        start = str(max(0, time))
        while rows := cast(list[Any], self._redis.xrange(stream, start, "+", count=_AT_ONCE)):
            entries = [_parse(row) for row in rows]
            yield from entries
            start = f"({entries[-1].identity}"


def most_entries(stream: str) -> int:
    """Return how many entries a stream keeps at least."""
    return MOST_OF_DEPLOYMENT if stream == names.AUDIT else MOST_OF_TENANT


def _current() -> Actor:
    return _actor.get() or _PROCESS


def _streams(tenant: str) -> list[tuple[str, int]]:
    """Return the streams that get an entry, with the number of entries that each keeps."""
    of_tenant = [(names.tenant_audit(tenant), MOST_OF_TENANT)] if tenant else []
    by_operator = not tenant or _current().kind == "command line"
    return ([(names.AUDIT, MOST_OF_DEPLOYMENT)] if by_operator else []) + of_tenant


def _actor_json() -> str:
    actor = _current()
    named = {"kind": actor.kind, "identity": actor.identity, "address": actor.address, "request": current_request()}
    return json.dumps({name: value for name, value in named.items() if value})


def _parse(row: tuple[bytes, Mapping[bytes, bytes]]) -> Entry:
    identity, stored = text(row[0]), {text(name): text(value) for name, value in row[1].items()}
    actor = json.loads(stored["actor"])
    return Entry(
        identity=identity,
        time=int(identity.partition("-")[0]),
        tenant=stored["tenant"],
        action=stored["action"],
        subject=stored["subject"],
        actor=Actor(actor["kind"], actor.get("identity", ""), actor.get("address", "")),
        request=actor.get("request", ""),
        details=json.loads(stored["details"]),
    )
