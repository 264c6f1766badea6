"""Authentication and authorization: determine the tenant and the scopes of each request.

The tenant is determined only by the API key, and every Redis key of a tenant includes the tenant's name. Requests are
authenticated before their body is read and before routing, so that no route can be left unprotected by mistake. Each route then
requires a scope, with `needs`.

While no API key exists and `settings.allow_without_keys` is set, every request belongs to the tenant `default` and has every
scope. A service caches what it reads about keys for `KEY_CACHE_SECONDS`. So a revoked or expired key stops working, and the
creation of the first key ends access without keys, within that time.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, cast

import redis
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from service.errors import (
    BodyTooLarge,
    MissingScope,
    QuotaExceeded,
    ServiceError,
    Unauthenticated,
    Unavailable,
    UnknownHost,
    problem,
)
from service.http.docs_page import DOCS_PATHS
from service.http.failed_keys import FailedKeys, client_address
from service.http.hosts import cannot_be_rebound, host_name
from service.http.shared_reads import SharedReads
from worker.errors import LimitReached
from worker.ledger.api_keys import DEFAULT_TENANT, KEY_CACHE_SECONDS, SCOPES, Key, Keys, Scope, allows, parts, proves
from worker.ledger.audit import Actor, acting
from worker.logs import fields

log = logging.getLogger(__name__)
PUBLIC = frozenset({"/healthz", "/readyz", "/openapi.json"}) | DOCS_PATHS
PUBLIC_BELOW = "/problems/"
_OPEN_HOSTS = "while there is no API key, only localhost and numeric addresses are answered; create a key or set ALLOWED_HOSTS"
UNMETERED = frozenset({"/metrics"})
"""Paths whose requests do not count towards a tenant's request limit."""
_bearer = HTTPBearer(
    auto_error=False, bearerFormat="qs_ID_SECRET", description="An API key, as `quickstudy keys create` prints it."
)


@dataclass(frozen=True)
class Access:
    """The tenant and scopes of an authenticated request.

    `key` is the id of its API key. It is empty if the request was accepted without a key.
    """

    tenant: str
    scopes: tuple[Scope, ...]
    key: str = ""

    def allows(self, scope: Scope) -> bool:
        """Return True if the request has this scope, or one that includes it."""
        return allows(self.scopes, scope)


class Authenticator:
    """Authenticates requests by their API key.

    If `open_allowed` is True, requests without a key are accepted, as tenant `default`, until the first key is created.
    """

    def __init__(self, keys: Keys, *, open_allowed: bool) -> None:
        self._open_allowed = open_allowed
        self._any_key = SharedReads(lambda _: keys.any(), KEY_CACHE_SECONDS)
        self._keys = SharedReads(keys.find, KEY_CACHE_SECONDS)

    async def authenticate(self, authorizations: list[bytes]) -> Access:
        """Return the tenant and scopes that a request has, from the values of its Authorization headers.

        An invalid key is rejected even if the service accepts requests without a key, because its sender expects the data of the
        key's tenant. Raises Unauthenticated, and redis.RedisError if the keys cannot be read.
        """
        tokens = [header[7:] for header in authorizations if header[:7].lower() == b"bearer "]
        if not tokens and self._open_allowed and await self._is_open():
            return Access(DEFAULT_TENANT, SCOPES)
        id_and_secret = parts(tokens[0].strip().decode("latin-1")) if len(tokens) == len(authorizations) == 1 else None
        if id_and_secret is None:
            raise Unauthenticated
        identity, secret = id_and_secret
        key = await self._valid_key(identity)
        if not proves(key, secret):
            raise Unauthenticated
        return Access(cast(Key, key).tenant, cast(Key, key).scopes, identity)

    async def _is_open(self) -> bool:
        if await self._any_key.get():
            # Permanently: even if all records are lost, this process does not accept requests without a key again.
            self._open_allowed = False
        return self._open_allowed

    async def _valid_key(self, identity: str) -> Key | None:
        """Return the key with this id, or None if it is unknown, revoked or expired."""
        key, now = await self._keys.get(identity)
        if key is None or not key.holds(now):
            self._keys.forget(identity)  # so that wrong keys use no memory, and a key that was just created works at once
        self._open_allowed = self._open_allowed and key is None
        return key if key is not None and key.holds(now) else None


class Authentication:
    """ASGI middleware that authenticates and counts requests before their body is read.

    Requests without valid authentication, and requests beyond the tenant's limit per minute, are answered with an error. Public
    paths such as `/healthz` are exempt from both, and accept no body.

    The answer to a wrong key is slowed down by `failed_keys`. If `any_host` is False, a request without a key is accepted only
    under a host name that no web page can make its own.
    """

    def __init__(self, app: ASGIApp, failed_keys: FailedKeys, *, any_host: bool) -> None:
        self.app, self._failed_keys, self._any_host = app, failed_keys, any_host

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["path"] in PUBLIC or scope["path"].startswith(PUBLIC_BELOW):
            if _has_body(scope):
                await problem(BodyTooLarge(f"body: expected none for {scope['path']}, which needs no API key"))(
                    scope, receive, send
                )
            else:
                await self.app(scope, receive, send)
            return
        headers = [value for name, value in scope["headers"] if name == b"authorization"]
        service = scope["app"].state.service
        try:
            access = await service.authenticator.authenticate(headers)
            if not access.key and not self._any_host and not cannot_be_rebound(name := host_name(scope)):
                raise UnknownHost(name, _OPEN_HOSTS)
            scope.setdefault("state", {})["access"] = access
            service.key_uses.note(access.key)
            await service.tenants.refresh(access.tenant)
            if scope["path"] not in UNMETERED:
                with service.threads.of(access.tenant):
                    await service.meter.count_requests(access.tenant)
        except Unauthenticated as error:
            await problem(await self._slowed_down(error, scope, headers))(scope, receive, send)
        except ServiceError as error:
            await problem(error)(scope, receive, send)
        except LimitReached as reached:
            await problem(QuotaExceeded(reached))(scope, receive, send)
        except redis.RedisError as error:
            log.warning("the records cannot be reached: %s", type(error).__name__)
            await problem(Unavailable("the records cannot be reached"))(scope, receive, send)
        else:
            actor = Actor("key" if access.key else "no key", access.key, (scope.get("client") or ("",))[0])
            with fields(tenant=access.tenant, key=access.key), acting(actor), service.threads.of(access.tenant):
                await self.app(scope, receive, send)

    async def _slowed_down(self, error: ServiceError, scope: AsgiScope, authorizations: list[bytes]) -> ServiceError:
        """Return the error to answer, after the delay that a wrong key gets.

        A request without any key is not delayed.
        """
        if authorizations:
            try:
                await self._failed_keys.slow_down(client_address(scope))
            except ServiceError as too_many:
                return too_many
        return error


def _has_body(scope: AsgiScope) -> bool:
    return any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in scope["headers"])


async def access(request: Request, _documented: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> Access:
    """Return the tenant and scopes of the request.

    This is a FastAPI dependency. Do not use it on public paths: their requests are not authenticated, so it fails there.
    """
    return cast(Access, request.state.access)


async def tenant(granted: Annotated[Access, Depends(access)]) -> str:
    """Return the tenant of the request. Routes get the tenant only from this FastAPI dependency."""
    return granted.tenant


def needs(scope: Scope) -> Callable[[Access], Awaitable[None]]:
    """Return a FastAPI dependency that raises MissingScope if the request lacks the scope."""

    async def check(granted: Annotated[Access, Depends(access)]) -> None:
        if not granted.allows(scope):
            raise MissingScope(scope)

    return check
