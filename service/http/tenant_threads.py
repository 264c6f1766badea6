"""The threads of calls that wait, most of all for Redis: so many for each tenant.

If Redis is slow, the requests of a tenant wait for the tenant's own threads, and other tenants have theirs.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ParamSpec, TypeVar, cast

import anyio.to_thread
from anyio import CapacityLimiter

P = ParamSpec("P")
R = TypeVar("R")
THREADS = 16
"""How many calls of one tenant may be waiting for Redis at once. Further ones start when one of these has ended."""
_limiter: contextvars.ContextVar[CapacityLimiter | None] = contextvars.ContextVar("limiter", default=None)


class TenantThreads:
    """The threads of all tenants, at most `most` of each. Must be used on the event loop."""

    def __init__(self, most: int = THREADS) -> None:
        self._most = most
        self._limiters: dict[str, tuple[CapacityLimiter, int]] = {}  # by tenant: the limiter, and how many requests use it

    @contextlib.contextmanager
    def of(self, tenant: str) -> Iterator[None]:
        """Let the calls of `in_thread` in the block use the threads of this tenant.

        Tasks that start in the block use them too."""
        limiter, requests = self._limiters.get(tenant) or (CapacityLimiter(self._most), 0)
        self._limiters[tenant] = (limiter, requests + 1)
        token = _limiter.set(limiter)
        try:
            yield
        finally:
            _limiter.reset(token)
            _, requests = self._limiters[tenant]
            if requests == 1:
                del self._limiters[tenant]
            else:
                self._limiters[tenant] = (limiter, requests - 1)


async def in_thread(function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """Run a function that may wait in a thread of the current tenant, and return its result.

    Outside of a request it uses threads that belong to no tenant.
    """
    call: Any = partial(function, *arguments, **named)
    return cast(R, await anyio.to_thread.run_sync(call, limiter=_limiter.get()))
