"""When a call is worth another attempt, and after how long."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from quickstudy.errors import OutOfReach, QuickstudyError, RateLimited, Unavailable

_FIRST_SECONDS, _MOST_SECONDS = 0.2, 10.0
_PATIENCE_SECONDS = 120.0
RETRIES = 3
"""Further attempts of a call, unless a client is made with another number."""
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout)
"""Of these the service has seen nothing."""
_FRUITLESS = (httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout, httpx.LocalProtocolError, httpx.UnsupportedProtocol)
"""Whoever has waited for the whole of `timeout` has waited enough; and what is wrong on our side stays so."""


@dataclass(frozen=True)
class Retries:
    """At most `most` further attempts: on 429 and 502 to 504 after the `Retry-After` that came, up to two minutes, else after a
    pause that doubles, from 0.2 to 10 seconds, less up to half of it by chance; and on a connection that failed or broke."""

    most: int
    chance: Callable[[], float] = random.random

    def pause(self, attempt: int, error: QuickstudyError, *, repeatable: bool = True) -> float | None:
        """Seconds until the attempt after `attempt` (from 0) that ended in `error`; None where there is none."""
        if attempt >= self.most or not self._passes(error, repeatable):
            return None
        if error.retry_after is not None:
            return error.retry_after if error.retry_after <= _PATIENCE_SECONDS else None
        doubled = _FIRST_SECONDS * 2.0 ** min(attempt, 10)
        return min(_MOST_SECONDS, doubled) * (1 - self.chance() / 2)

    def _passes(self, error: QuickstudyError, repeatable: bool) -> bool:
        if isinstance(error, OutOfReach):
            cause = error.__cause__
            return isinstance(cause, NEVER_SENT) or (repeatable and not isinstance(cause, _FRUITLESS))
        return isinstance(error, Unavailable) or (isinstance(error, RateLimited) and not error.lasting)
