"""Errors as problem documents (RFC 9457).

ServiceError            status, kind (the last part of the document's `type`), title
├── InvalidRequest      422  names the field, what was expected, what came
├── KeyUsedOtherwise    422  an Idempotency-Key that came with another request before
├── Unauthenticated     401  the same for a key that is missing, unknown, revoked or expired
├── MissingScope        403  names the scope
├── UnknownAdapter      404
├── UnknownAlias        404
├── UnknownPath         404
├── MethodNotAllowed    405  Allow
├── AdapterNotReady     409  with the adapter's status, and the reason where it failed
├── AdapterInUse        409  names the aliases that point at it
├── AliasMoved          409  with where the alias points now
├── BodyTooLarge        413
├── ClientGone          499  which nobody reads, but the log
├── Overloaded          429  Retry-After
├── QuotaExceeded       429  Retry-After; names the limit, the most it allows, and what is used
└── Unavailable         503  Retry-After
    └── NotReady        503  of /readyz; names what is missing
"""

from typing import Any

from fastapi.responses import JSONResponse

from worker.errors import LimitReached
from worker.logs import current_request


class ServiceError(Exception):
    """Root of the tree; `detail` is what the user reads, `extra` goes into the document beside it."""

    status = 500
    kind = "internal-error"
    title = "Internal error"

    def __init__(self, detail: str, *, headers: dict[str, str] | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.detail, self.headers, self.extra = detail, headers or {}, extra


class InvalidRequest(ServiceError):
    status, kind, title = 422, "invalid-request", "Invalid request"

    def __init__(self, field: str, expected: str, got: Any) -> None:
        shown = repr(got) if len(repr(got)) <= 80 else repr(got)[:77] + "…"
        super().__init__(
            f"{field}: expected {expected}, got {shown}", errors=[{"field": field, "expected": expected, "got": shown}]
        )


class KeyUsedOtherwise(ServiceError):
    status, kind, title = 422, "idempotency-key-used-otherwise", "Idempotency-Key used for another request"


class Unauthenticated(ServiceError):
    status, kind, title = 401, "unauthenticated", "No valid API key"

    def __init__(self) -> None:
        detail = "expected a valid API key, as Authorization: Bearer KEY"
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"})


class MissingScope(ServiceError):
    status, kind, title = 403, "missing-scope", "The API key lacks a scope"

    def __init__(self, scope: str) -> None:
        super().__init__(f"expected an API key with the scope {scope}", scope=scope)


class UnknownAdapter(ServiceError):
    status, kind, title = 404, "unknown-adapter", "Unknown adapter"

    def __init__(self, adapter_id: str, detail: str = "no adapter {}") -> None:
        super().__init__(detail.format(adapter_id))


class UnknownAlias(ServiceError):
    status, kind, title = 404, "unknown-alias", "Unknown alias"

    def __init__(self, alias: str) -> None:
        super().__init__(f"no alias {alias}")


class UnknownPath(ServiceError):
    status, kind, title = 404, "unknown-path", "Unknown path"


class MethodNotAllowed(ServiceError):
    status, kind, title = 405, "method-not-allowed", "Method not allowed"


class AdapterNotReady(ServiceError):
    status, kind, title = 409, "adapter-not-ready", "Adapter not ready"


class AdapterInUse(ServiceError):
    status, kind, title = 409, "adapter-in-use", "Adapter in use"


class AliasMoved(ServiceError):
    status, kind, title = 409, "alias-moved", "The alias points elsewhere"


class BodyTooLarge(ServiceError):
    status, kind, title = 413, "body-too-large", "Body too large"


class ClientGone(ServiceError):
    status, kind, title = 499, "client-gone", "The client went before the answer"

    def __init__(self) -> None:
        super().__init__("the client went before the answer")


class Overloaded(ServiceError):
    status, kind, title = 429, "overloaded", "Too many inputs are waiting"

    def __init__(self, detail: str, retry_after: int) -> None:
        super().__init__(detail, headers={"Retry-After": str(min(60, max(1, retry_after)))})


class QuotaExceeded(ServiceError):
    status, kind, title = 429, "quota-exceeded", "A limit of this tenant is reached"

    def __init__(self, reached: LimitReached) -> None:
        headers = {"Retry-After": str(reached.retry_after)}
        super().__init__(str(reached), headers=headers, limit=reached.limit, most=reached.most, used=reached.used)


class Unavailable(ServiceError):
    status, kind, title = 503, "unavailable", "Temporarily unavailable"

    def __init__(self, detail: str, retry_after: int = 2, **extra: Any) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after)}, **extra)


class NotReady(Unavailable):
    status, kind, title = 503, "not-ready", "Not ready"


def problem(error: ServiceError) -> JSONResponse:
    """Within a request, so that the document carries its id."""
    body = {"type": f"/problems/{error.kind}", "title": error.title, "status": error.status, "detail": error.detail}
    body |= {"request_id": current_request(), **error.extra}
    return JSONResponse(body, error.status, headers=error.headers, media_type="application/problem+json")
