"""The retry policy: which failed calls are sent again, and after which pause."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from quickstudy.errors import OutOfReach, QuickstudyError, RateLimited, Unavailable

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 10.0
_LONGEST_RETRY_AFTER_SECONDS = 120.0
RETRIES = 3
"""Default number of further attempts for a call."""
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout)
"""Errors after which the service has certainly not received the request."""
_NOT_RETRIED = (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout, httpx.LocalProtocolError, httpx.UnsupportedProtocol)
"""Errors without a retry: the caller has waited for the whole timeout, or the request itself is faulty."""


@dataclass(frozen=True)
class Retries:
    """The retry policy of a client: at most `limit` further attempts for one call.

    A call is retried after 429, 502, 503 and 504, unless 429 reports a limit on storage, and after a connection that failed or
    broke. The pause is the answer's `Retry-After`; one above two minutes ends the attempts. Without that header the pause doubles
    from 0.2 up to 10 seconds, and `jitter`, a random number from 0 to 1, shortens each pause by up to half of it.
    """

    limit: int
    jitter: Callable[[], float] = random.random

    def pause(self, attempt: int, error: QuickstudyError, *, repeatable: bool = True) -> float | None:
        """Return the seconds until the next attempt, or None if there is none.

        `attempt` counts from 0 and is the one that ended in `error`. A call that is not `repeatable` is retried only if the service
        refused it or never received it.
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
