"""Errors as problem documents (RFC 9457).

ServiceError            status, title
├── InvalidRequest      422  names the field, what was expected, what came
├── Unauthenticated     401  the same for a key that is missing, unknown, revoked or expired
├── MissingScope        403  names the scope
├── UnknownAdapter      404
├── AdapterNotReady     409  with the adapter's status, and the reason where it failed
├── BodyTooLarge        413
├── ClientGone          499  which nobody reads, but the log
├── Overloaded          429  Retry-After
├── QuotaExceeded       429  Retry-After; names the limit, the most it allows, and what is used
└── Unavailable         503  Retry-After
"""

from typing import Any

from fastapi.responses import JSONResponse

from worker.errors import LimitReached


class ServiceError(Exception):
    """Root of the tree; `detail` is what the user reads, `extra` goes into the document beside it."""

    status = 500
    title = "Internal error"

    def __init__(self, detail: str, *, headers: dict[str, str] | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.detail, self.headers, self.extra = detail, headers or {}, extra


class InvalidRequest(ServiceError):
    status, title = 422, "Invalid request"

    def __init__(self, field: str, expected: str, got: Any) -> None:
        shown = repr(got) if len(repr(got)) <= 80 else repr(got)[:77] + "…"
        super().__init__(
            f"{field}: expected {expected}, got {shown}", errors=[{"field": field, "expected": expected, "got": shown}]
        )


class Unauthenticated(ServiceError):
    status, title = 401, "No valid API key"

    def __init__(self) -> None:
        detail = "expected a valid API key, as Authorization: Bearer KEY"
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"})


class MissingScope(ServiceError):
    status, title = 403, "The API key lacks a scope"

    def __init__(self, scope: str) -> None:
        super().__init__(f"expected an API key with the scope {scope}", scope=scope)


class UnknownAdapter(ServiceError):
    status, title = 404, "Unknown adapter"


class AdapterNotReady(ServiceError):
    status, title = 409, "Adapter not ready"


class BodyTooLarge(ServiceError):
    status, title = 413, "Body too large"


class ClientGone(ServiceError):
    status, title = 499, "The client went before the answer"

    def __init__(self) -> None:
        super().__init__("the client went before the answer")


class Overloaded(ServiceError):
    status, title = 429, "Too many inputs are waiting"

    def __init__(self, detail: str, retry_after: int) -> None:
        super().__init__(detail, headers={"Retry-After": str(min(60, max(1, retry_after)))})


class QuotaExceeded(ServiceError):
    status, title = 429, "A limit of this tenant is reached"

    def __init__(self, reached: LimitReached) -> None:
        headers = {"Retry-After": str(reached.retry_after)}
        super().__init__(str(reached), headers=headers, limit=reached.limit, most=reached.most, used=reached.used)


class Unavailable(ServiceError):
    status, title = 503, "Temporarily unavailable"

    def __init__(self, detail: str, retry_after: int = 2) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after)})


def problem(error: ServiceError) -> JSONResponse:
    body = {"type": "about:blank", "title": error.title, "status": error.status, "detail": error.detail, **error.extra}
    return JSONResponse(body, error.status, headers=error.headers, media_type="application/problem+json")
