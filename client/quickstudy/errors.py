"""The errors that a call can raise.

QuickstudyError          status, problem, retry_after; the message is the problem's detail
├── OutOfReach           no answer: the connection failed, or the answer took longer than `timeout`
├── NotUnderstood        the answer cannot be parsed: the server is not Quickstudy, or its version is incompatible
├── Unauthorised         401: no valid API key; 403: the key lacks the required scope
├── NotFound             404
├── Conflict             409
│   └── NotReady         the adapter cannot predict now; the error's adapter_status says why
├── Invalid              413, 422, or a value that cannot be sent; field and row say where
├── RateLimited          429; limit is the name of the setting that was reached
└── Unavailable          502, 503, 504
"""

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Self

import httpx

_STORAGE_LIMITS = ("MAX_ADAPTERS", "MAX_ADAPTER_BYTES", "MAX_EXAMPLE_BYTES", "MAX_ALIASES")
_ROW = re.compile(r"\b(support|inputs|examples)\[(\d+)\]")


class QuickstudyError(Exception):
    """Base class of all errors that a call raises.

    Attributes:
        status: the HTTP status, or None if there was no answer.
        problem: the RFC 9457 problem document that the service sent. If there is none, the client creates a similar mapping.
        retry_after: seconds that the service asked to wait before another attempt, or None.
    """

    def __init__(self, status: int | None, problem: Mapping[str, Any], retry_after: float | None = None) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or f"HTTP {status}"))
        self.status, self.problem, self.retry_after = status, dict(problem), retry_after

    @property
    def type(self) -> str | None:
        """The problem's type, such as `/problems/adapter-in-use`, which is more specific than the class."""
        return self.problem.get("type")


class OutOfReach(QuickstudyError):
    """The service did not answer: the connection failed, or the answer took longer than `timeout`."""


class NotUnderstood(QuickstudyError):
    """The answer cannot be parsed.

    The server is not Quickstudy, or its version is not supported by this client.
    """


class Unauthorised(QuickstudyError):
    """The API key is missing or not valid (401), or it lacks the required scope (403)."""


class NotFound(QuickstudyError):
    """The tenant has no such adapter or alias, or the service has no such path (404)."""


class Conflict(QuickstudyError):
    """The current state of an adapter or alias does not allow the call (409)."""


class NotReady(Conflict):
    """The adapter cannot predict: it is not ready yet, its job failed, or it is no longer stored."""

    @property
    def adapter_status(self) -> str:
        """The adapter's status: `queued`, `running`, `failed`, `evicted`, `expired` or `unknown`.

        If it is `failed`, the message or `problem["reason"]` says why. `unknown` means that time ran out before the client had
        received the status.
        """
        return str(self.problem.get("adapter_status"))


class Invalid(QuickstudyError):
    """The service rejects a value (422) or the size of the body (413).

    The client raises it itself, with the status None, for a value that it cannot send.
    """

    @property
    def field(self) -> str | None:
        """The path of the first invalid field, such as `support[3].label`, or None."""
        errors = self.problem.get("errors")
        if isinstance(errors, list) and errors and isinstance(errors[0], dict):
            return str(errors[0].get("field"))
        return None

    @property
    def row(self) -> int | None:
        """The position, from 0, of the invalid example or input; None if there is no single invalid one."""
        return row_of(self.field or "")

    def too_many(self, field: str) -> bool:
        """Return True if the service may accept the call with fewer entries in `field`."""
        return self.status == 413 or self.field == field

    def with_row_offset(self, offset: int) -> Self:
        """Return a copy of the error with `offset` added to its row number.

        A client that sends a request in several parts uses it to report the row in the caller's full list.
        """

        def shifted(value: Any) -> Any:
            if isinstance(value, str):
                return _ROW.sub(lambda found: f"{found[1]}[{int(found[2]) + offset}]", value, count=1)
            if isinstance(value, list):
                return [shifted(entry) for entry in value]
            return {**value, "field": shifted(value.get("field"))} if isinstance(value, dict) else value

        moved = {name: shifted(value) if name in ("detail", "errors") else value for name, value in self.problem.items()}
        return type(self)(self.status, moved, self.retry_after)


class RateLimited(QuickstudyError):
    """A limit is reached (429): too many requests, or a quota of the tenant is used up."""

    @property
    def limit(self) -> str | None:
        """The setting whose limit is reached, such as `MAX_ADAPTERS`; None if the service names none."""
        return self.problem.get("limit")

    @property
    def lasting(self) -> bool:
        """True if the limit is on stored adapters or aliases, so that waiting alone cannot help."""
        return self.limit in _STORAGE_LIMITS


class Unavailable(QuickstudyError):
    """The service, or something that it depends on, cannot answer at the moment (502, 503, 504)."""


def row_of(field: str) -> int | None:
    """Return the row number in a field path: 3 for `support[3].label`, None for a path without a row."""
    found = _ROW.match(field)
    return int(found[2]) if found else None


_BY_STATUS: dict[int, type[QuickstudyError]] = {
    401: Unauthorised,
    403: Unauthorised,
    404: NotFound,
    413: Invalid,
    422: Invalid,
    429: RateLimited,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


def error_of(response: httpx.Response) -> QuickstudyError:
    """Convert an HTTP response without a success status to a QuickstudyError of the matching class."""
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {"detail": f"HTTP {response.status_code} {response.reason_phrase}".rstrip()}
    kind = _BY_STATUS.get(response.status_code, QuickstudyError)
    if response.status_code == 409:
        kind = NotReady if "adapter_status" in document else Conflict
    return kind(response.status_code, document, _retry_after_seconds(response.headers.get("Retry-After")))


def out_of_reach(error: httpx.TransportError) -> OutOfReach:
    """Convert a transport error to OutOfReach. Its message omits the user and password in the URL."""
    url = error.request.url
    reason = str(error) or type(error).__name__
    detail = f"{url.scheme}://{url.netloc.decode()} is out of reach: {reason}"
    unreachable = OutOfReach(None, {"title": "Out of reach", "detail": detail})
    unreachable.__cause__ = error
    return unreachable


def _retry_after_seconds(header: str | None) -> float | None:
    """Convert a `Retry-After` header to seconds. Return None if it is neither a number nor a date."""
    if header is None:
        return None
    if header.isascii() and header.isdecimal():
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
