"""What can go wrong with a call.

QuickstudyError          problem, status; the message is the problem's detail
├── OutOfReach           nobody answered
├── NotUnderstood        an answer that is none of Quickstudy's, or of another version's
├── Unauthorised         401: no key that holds; 403: one without the scope that is needed
├── NotFound             404
├── Conflict             409
│   └── NotReady         adapter_status: an adapter that cannot predict yet, or no more, or never will
├── Invalid              413, 422   field
├── RateLimited          429        limit, retry_after
└── Unavailable          502, 503, 504  retry_after
"""

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Self

import httpx

_LASTING = ("MAX_ADAPTERS", "MAX_ADAPTER_BYTES", "MAX_EXAMPLE_BYTES", "MAX_ALIASES")
_ROW = re.compile(r"\b(support|inputs|examples)\[(\d+)\]")


class QuickstudyError(Exception):
    """Root of the tree. `problem` is the service's RFC 9457 document, `status` its HTTP status; None where nobody answered."""

    def __init__(self, status: int | None, problem: Mapping[str, Any], retry_after: float | None = None) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or f"HTTP {status}"))
        self.status, self.problem, self.retry_after = status, dict(problem), retry_after

    @property
    def type(self) -> str | None:
        """The problem's type, as in `/problems/adapter-in-use`: what to decide by where a class says too little."""
        return self.problem.get("type")


class OutOfReach(QuickstudyError):
    pass


class NotUnderstood(QuickstudyError):
    pass


class Unauthorised(QuickstudyError):
    pass


class NotFound(QuickstudyError):
    pass


class Conflict(QuickstudyError):
    pass


class NotReady(Conflict):
    @property
    def adapter_status(self) -> str:
        """`queued`, `running`, `failed` (the problem's `reason` says why), `evicted` or `expired`; `unknown` where time was up
        before the service said."""
        return str(self.problem.get("adapter_status"))


class Invalid(QuickstudyError):
    @property
    def field(self) -> str | None:
        """The first field that is wrong, as in `support[3].label`."""
        errors = self.problem.get("errors")
        if isinstance(errors, list) and errors and isinstance(errors[0], dict):
            return str(errors[0].get("field"))
        return None

    @property
    def row(self) -> int | None:
        """The position of the example or input that is wrong, where it is one."""
        return row_of(self.field or "")

    def too_many(self, field: str) -> bool:
        """Whether less of `field` at once may be accepted."""
        return self.status == 413 or self.field == field

    def moved(self, by: int) -> Self:
        """The same, for the caller of a call of which this was a part that began at row `by`."""

        def shifted(value: Any) -> Any:
            if isinstance(value, str):
                return _ROW.sub(lambda found: f"{found[1]}[{int(found[2]) + by}]", value, count=1)
            if isinstance(value, list):
                return [shifted(entry) for entry in value]
            return {**value, "field": shifted(value.get("field"))} if isinstance(value, dict) else value

        moved = {name: shifted(value) if name in ("detail", "errors") else value for name, value in self.problem.items()}
        return type(self)(self.status, moved, self.retry_after)


class RateLimited(QuickstudyError):
    @property
    def limit(self) -> str | None:
        """The setting that is used up, where it is one."""
        return self.problem.get("limit")

    @property
    def lasting(self) -> bool:
        """Whether waiting does not help: adapters have to go first."""
        return self.limit in _LASTING


class Unavailable(QuickstudyError):
    pass


def row_of(field: str) -> int | None:
    """The position of the example or input that a field path like `support[3].label` begins with, if it does."""
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
    """The error that an answer other than a success is."""
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {"detail": f"HTTP {response.status_code} {response.reason_phrase}".rstrip()}
    kind = _BY_STATUS.get(response.status_code, QuickstudyError)
    if response.status_code == 409:
        kind = NotReady if "adapter_status" in document else Conflict
    return kind(response.status_code, document, _seconds(response.headers.get("Retry-After")))


def out_of_reach(error: httpx.TransportError) -> OutOfReach:
    """What a call is that had no answer. Names the host, without what a URL may have before it."""
    url = error.request.url
    reason = str(error) or type(error).__name__
    detail = f"{url.scheme}://{url.netloc.decode()} is out of reach: {reason}"
    made = OutOfReach(None, {"title": "Out of reach", "detail": detail})
    made.__cause__ = error
    return made


def _seconds(header: str | None) -> float | None:
    """Of `Retry-After`, which is a number of seconds or a date; None where it is neither."""
    if header is None:
        return None
    if header.isascii() and header.isdecimal():
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
