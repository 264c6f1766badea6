"""The retry policy: which failed calls are retried, and after what delay."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from quickstudy.errors import OutOfReach, QuickstudyError, RateLimited, Unavailable

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 10.0
_LONGEST_RETRY_AFTER_SECONDS = 120.0
RETRIES = 3
"""Default number of further attempts after a call has failed."""
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout)
"""Errors after which the service has certainly not received the request."""
_NOT_RETRIED = (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout, httpx.LocalProtocolError, httpx.UnsupportedProtocol)
"""Errors that are not retried: the caller has already waited for the whole timeout, or the request itself is faulty."""


@dataclass(frozen=True)
class Retries:
    """The retry policy of a client: at most `limit` further attempts for one call.

    A call is retried after 429, 502, 503 and 504, and if the connection fails or breaks. It is not retried after a 429 that reports
    a limit on storage. The pause before a retry is the answer's `Retry-After`; if that is above two minutes, the call is not
    retried. Without that header, the pause starts at 0.2 seconds and doubles with each attempt, up to 10 seconds. Each
    of these pauses is shortened at random by up to a half: `jitter` returns a random number from 0 to 1.
    """

    limit: int
    jitter: Callable[[], float] = random.random

    def pause(self, attempt: int, error: QuickstudyError, *, repeatable: bool = True) -> float | None:
        """Return the seconds to wait before the next attempt, or None if the call must not be retried.

        `attempt`: the number, from 0, of the attempt that failed with `error`. A call that is not `repeatable` is retried only if
        the service refused it or never received it.
        """
        if attempt >= self.limit or not self._is_transient(error, repeatable):
            return None
        if error.retry_after is not None:
            return error.retry_after if error.retry_after <= _LONGEST_RETRY_AFTER_SECONDS else None
        doubled = _FIRST_PAUSE_SECONDS * 2.0 ** min(attempt, 10)
        return min(_LONGEST_PAUSE_SECONDS, doubled) * (1 - self.jitter() / 2)

    def _is_transient(self, error: QuickstudyError, repeatable: bool) -> bool:
        if isinstance(error, OutOfReach):
            cause = error.__cause__
            return isinstance(cause, NEVER_SENT) or (repeatable and not isinstance(cause, _NOT_RETRIED))
        return isinstance(error, Unavailable) or (isinstance(error, RateLimited) and not error.lasting)
