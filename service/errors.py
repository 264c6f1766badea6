"""Errors that the service reports to clients as problem documents (RFC 9457).

Each class sets the HTTP status, `kind` (the last part of the document's `type`) and the title. "Retry-After" means that the
response has that header.

ServiceError             500
├── InvalidRequest       422  names the field, what was expected and what was received
├── IdempotencyKeyReused 422  the Idempotency-Key was first used for a different request
├── Unauthenticated      401  the API key is missing, unknown, revoked or expired; the response does not say which
├── TooManyFailedKeys    429  Retry-After; wrong API keys came faster from one address than they are answered
├── MissingScope         403  names the missing scope
├── UnknownHost          421  the Host header names another server
├── UnknownAdapter       404
├── UnknownAlias         404
├── UnknownPath          404
├── MethodNotAllowed     405  the Allow header lists the methods that the path supports
├── AdapterNotReady      409  includes the adapter's status, and the reason if its job failed
├── AdapterInUse         409  lists the aliases that point at the adapter
├── AliasMoved           409  includes the adapter that the alias points at now
├── BodyTooLarge         413
├── BodyTooSlow          408  the body took too long to arrive
├── ClientGone           499  the client disconnected; appears only in the log and the metrics
├── Overloaded           429  Retry-After; too many inputs are waiting for a prediction, or requests to be checked
├── QuotaExceeded        429  Retry-After; includes the limit's name, its value and the current usage
└── Unavailable          503  Retry-After
    ├── NotReady         503  raised only by /readyz; lists what is missing
    └── PredictorHangs   503  raised only by /healthz: the process must be restarted
"""

import math
from typing import Any

from fastapi.responses import JSONResponse

from worker.errors import LimitReached
from worker.logs import current_request


class ServiceError(Exception):
    """The base class of all errors of the service.

    `detail` is the message for the user. `headers` are added to the response, and `extra` are further members of its problem
    document.
    """

    status = 500
    kind = "internal-error"
    title = "Internal error"

    def __init__(self, detail: str, *, headers: dict[str, str] | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.detail, self.headers, self.extra = detail, headers or {}, extra


class Described(str):
    """A description of what came in a request, which messages show without the quotes of a value."""

    def __repr__(self) -> str:
        return str(self)


class InvalidRequest(ServiceError):
    status, kind, title = 422, "invalid-request", "Invalid request"

    def __init__(self, field: str, expected: str, got: Any) -> None:
        shown = repr(got) if len(repr(got)) <= 80 else repr(got)[:77] + "…"
        super().__init__(
            f"{field}: expected {expected}, got {shown}", errors=[{"field": field, "expected": expected, "got": shown}]
        )


class IdempotencyKeyReused(ServiceError):
    status, kind, title = 422, "idempotency-key-used-otherwise", "Idempotency-Key used for another request"


class Unauthenticated(ServiceError):
    status, kind, title = 401, "unauthenticated", "No valid API key"

    def __init__(self) -> None:
        detail = "expected a valid API key in the header Authorization: Bearer KEY"
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"})


class TooManyFailedKeys(ServiceError):
    status, kind, title = 429, "too-many-failed-keys", "Too many wrong API keys from this address"

    def __init__(self, retry_after: float) -> None:
        detail = "expected fewer wrong API keys from this address at the same time"
        super().__init__(detail, headers={"Retry-After": str(max(1, math.ceil(retry_after)))})


class UnknownHost(ServiceError):
    status, kind, title = 421, "unknown-host", "This service is not the host of the request"

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"Host: {name[:80]!r} is refused: {why}")


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
    status, kind, title = 409, "alias-moved", "The alias does not point at the expected adapter"


class AliasWithoutHistory(ServiceError):
    status, kind, title = 409, "alias-without-history", "There is no earlier adapter to roll the alias back to"


class BodyTooLarge(ServiceError):
    status, kind, title = 413, "body-too-large", "Body too large"


class BodyTooSlow(ServiceError):
    status, kind, title = 408, "body-too-slow", "The body took too long to arrive"

    def __init__(self, received: int, seconds: float) -> None:
        detail = f"body: expected more than {received} bytes within {seconds:.0f} s"
        super().__init__(detail, headers={"Connection": "close"})


class ClientGone(ServiceError):
    status, kind, title = 499, "client-gone", "The client disconnected before the answer"

    def __init__(self) -> None:
        super().__init__("the client disconnected before the answer")


class Overloaded(ServiceError):
    status, kind, title = 429, "overloaded", "Too much work is waiting"

    def __init__(self, detail: str, retry_after: int) -> None:
        super().__init__(detail, headers={"Retry-After": str(min(60, max(1, retry_after)))})


class QuotaExceeded(ServiceError):
    status, kind, title = 429, "quota-exceeded", "This tenant has reached a limit"

    def __init__(self, reached: LimitReached) -> None:
        headers = {"Retry-After": str(reached.retry_after)}
        super().__init__(str(reached), headers=headers, limit=reached.limit, most=reached.most, used=reached.used)


class Unavailable(ServiceError):
    status, kind, title = 503, "unavailable", "Temporarily unavailable"

    def __init__(self, detail: str, retry_after: int = 2, **extra: Any) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after)}, **extra)


class NotReady(Unavailable):
    status, kind, title = 503, "not-ready", "Not ready"


class PredictorHangs(Unavailable):
    status, kind, title = 503, "predictor-hangs", "The predictor hangs"


def problem(error: ServiceError) -> JSONResponse:
    """Return the problem response for an error. Its body includes the id of the current request."""
    body = {"type": f"/problems/{error.kind}", "title": error.title, "status": error.status, "detail": error.detail}
    body |= {"request_id": current_request(), **error.extra}
    return JSONResponse(body, error.status, headers=error.headers, media_type="application/problem+json")
