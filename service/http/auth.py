"""Whose request is it, and what may it do? Every key in Redis starts with the tenant, and the tenant comes from the API key alone.

The door stands before the body is read and before the routes, so that a route which declares nothing is behind it all the same.
Until the first key is made, and where `settings.allow_without_keys` says so, whoever comes is `default` with every scope. A key
that is revoked or expires stops working within `KEY_CACHE_SECONDS`, and the first key ends the openness within that time.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, cast

import redis
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from service.errors import MissingScope, QuotaExceeded, ServiceError, Unauthenticated, Unavailable, problem
from worker.errors import LimitReached
from worker.ledger.api_keys import DEFAULT_TENANT, KEY_CACHE_SECONDS, SCOPES, Key, Keys, Scope, parts, proves
from worker.logs import fields

log = logging.getLogger(__name__)
PUBLIC = frozenset({"/healthz", "/readyz", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"})
PUBLIC_BELOW = "/problems/"
UNMETERED = frozenset({"/metrics"})
"""Not a tenant's own: no limit of requests holds for it."""
_bearer = HTTPBearer(auto_error=False, bearerFormat="qs_ID_SECRET", description="As `quickstudy keys create` shows it.")


@dataclass(frozen=True)
class Access:
    """What a request was let in as. `key`: the id of its key, empty where none was needed."""

    tenant: str
    scopes: tuple[Scope, ...]
    key: str = ""

    def allows(self, scope: Scope) -> bool:
        """`admin` has the other scopes too."""
        return scope in self.scopes or "admin" in self.scopes


class Door:
    """Lets requests in by their key. `open_allowed`: as `default` without one, until the first key is made."""

    def __init__(self, keys: Keys, *, open_allowed: bool) -> None:
        self._keys, self._open_allowed = keys, open_allowed
        self._known: dict[str, tuple[float, Key]] = {}
        self._open_until = 0.0

    async def admit(self, authorizations: list[bytes]) -> Access:
        """By the request's Authorization headers. Raises Unauthenticated, and redis.RedisError where what it takes is out of reach.

        A key that is not valid is refused in an open service too: who shows one expects the data of its tenant.
        """
        shown = [header[7:] for header in authorizations if header[:7].lower() == b"bearer "]
        if not shown and self._open_allowed and await self._open():
            return Access(DEFAULT_TENANT, SCOPES)
        named = parts(shown[0].strip().decode("latin-1")) if len(shown) == len(authorizations) == 1 else None
        if named is None:
            raise Unauthenticated
        identity, secret = named
        key = await self._key(identity)
        if not proves(key, secret):
            raise Unauthenticated
        return Access(cast(Key, key).tenant, cast(Key, key).scopes, identity)

    async def _open(self) -> bool:
        began = time.monotonic()  # before it is read: what happens in between counts from here
        if began >= self._open_until:
            if await run_in_threadpool(self._keys.any):
                self._open_allowed = False  # for good: not even the loss of all records opens this process again
            else:
                self._open_until = began + KEY_CACHE_SECONDS
        return self._open_allowed

    async def _key(self, identity: str) -> Key | None:
        """One that holds."""
        began = time.monotonic()
        until, key = self._known.get(identity, (0.0, None))
        if began < until:
            return key
        found, now = await run_in_threadpool(self._keys.find, identity)
        self._open_allowed = self._open_allowed and found is None
        if found is None or not found.holds(now):
            self._known.pop(identity, None)
            return None
        self._known[identity] = (began + KEY_CACHE_SECONDS, found)
        return found


class Authentication:
    """ASGI middleware: nothing but `PUBLIC` paths is answered without a valid key, or beyond the tenant's requests of a minute, and
    no body is read before."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PUBLIC or scope["path"].startswith(PUBLIC_BELOW):
            await self.app(scope, receive, send)
            return
        headers = [value for name, value in scope["headers"] if name == b"authorization"]
        service = scope["app"].state.service
        try:
            access = await service.door.admit(headers)
            scope.setdefault("state", {})["access"] = access
            if scope["path"] not in UNMETERED:
                await service.meter.request(access.tenant)
        except ServiceError as error:
            await problem(error)(scope, receive, send)
        except LimitReached as reached:
            await problem(QuotaExceeded(reached))(scope, receive, send)
        except redis.RedisError as error:
            log.warning("the records are out of reach: %s", type(error).__name__)
            await problem(Unavailable("the records are out of reach"))(scope, receive, send)
        else:
            with fields(tenant=access.tenant, key=access.key):
                await self.app(scope, receive, send)


async def access(request: Request, _documented: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> Access:
    """FastAPI dependency: as whom the request was let in. A route on a public path has no such thing, and fails."""
    return cast(Access, request.state.access)


async def tenant(granted: Annotated[Access, Depends(access)]) -> str:
    """FastAPI dependency: routes take the tenant from here and from nowhere else."""
    return granted.tenant


def needs(scope: Scope) -> Callable[[Access], Awaitable[None]]:
    """A dependency of a route or router: raises MissingScope where the request's key has not this scope."""

    async def check(granted: Annotated[Access, Depends(access)]) -> None:
        if not granted.allows(scope):
            raise MissingScope(scope)

    return check
