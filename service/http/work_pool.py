"""The threads for heavy work, which take the work of the tenants in turn.

Calls of Redis have other threads (`tenant_threads.py`), so that neither kind of work waits for the other.
"""

import asyncio
import contextlib
import contextvars
import os
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from service.errors import Overloaded

P = ParamSpec("P")
R = TypeVar("R")

_MOST_THREADS = 4
"""Most threads by default. Parsing and validating hold the interpreter's lock, so that more threads only slow the event loop."""


class WorkPool:
    """Threads for heavy work, such as parsing large bodies and tokenizing. Must be used on the event loop.

    Each tenant has a queue, and the queues are served in turn. One tenant gets at most all threads but one, so that the next
    tenant need not wait until its work ends. `threads`: at least 2; None: one for each core, from 2 to 4. `waiting` and
    `waiting_of_tenant`: how much work may wait, in total and of one tenant.
    """

    def __init__(self, threads: int | None = None, *, waiting: int = 1024, waiting_of_tenant: int = 256) -> None:
        self._threads = threads or min(_MOST_THREADS, max(2, os.cpu_count() or 2))
        self._most, self._most_of_tenant = waiting, waiting_of_tenant
        self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="work")
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}  # by tenant, the one whose turn is next first
        self._running = Counter[str]()  # by tenant
        self._seconds = 0.1  # of one piece of work, on average

    async def run(self, tenant: str, function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
        """Run a function in a thread when it is the tenant's turn, and return its result.

        Raises Overloaded at once if too much work is waiting.
        """
        await self._turn(tenant)
        began, context = time.perf_counter(), contextvars.copy_context()
        work: Future[R] = self._executor.submit(context.run, partial(function, *arguments, **named))
        loop = asyncio.get_running_loop()

        def ended(_: Future[R]) -> None:  # in the thread: if the caller was cancelled, the thread is busy until now
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._end, tenant, time.perf_counter() - began)

        work.add_done_callback(ended)
        return await asyncio.wrap_future(work)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _turn(self, tenant: str) -> None:
        """Wait until one of the threads is for this tenant, and count it as running."""
        waiting, of_tenant = sum(map(len, self._queues.values())), len(self._queues.get(tenant, ()))
        if of_tenant >= self._most_of_tenant or waiting >= self._most:
            whose, number = ("this tenant", of_tenant) if of_tenant >= self._most_of_tenant else ("all tenants", waiting)
            message = f"{number} requests of {whose} are waiting to be checked: expected fewer"
            raise Overloaded(message, round(self._seconds * waiting / self._threads))
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(tenant, deque()).append(turn)
        self._start()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._remove(tenant, turn)
            else:  # it had its turn at the same moment
                self._end(tenant, self._seconds)
            raise

    def _start(self) -> None:
        """Let the next ones in turn run, as far as there are threads."""
        for tenant in list(self._queues):
            if self._running.total() >= self._threads:
                return
            if self._running[tenant] >= self._threads - 1:
                continue
            queue = self._queues.pop(tenant)  # and put it behind the others
            while queue and queue[0].cancelled():  # its caller has not resumed yet
                queue.popleft()
            if queue:
                self._running[tenant] += 1
                queue.popleft().set_result(None)
            if queue:
                self._queues[tenant] = queue

    def _end(self, tenant: str, seconds: float) -> None:
        self._seconds += 0.1 * (seconds - self._seconds)
        self._running[tenant] -= 1
        if not self._running[tenant]:
            del self._running[tenant]
        self._start()

    def _remove(self, tenant: str, turn: asyncio.Future[None]) -> None:
        """Remove a cancelled turn, unless `_start` has skipped it already."""
        queue = self._queues.get(tenant, deque())
        with contextlib.suppress(ValueError):
            queue.remove(turn)
        if not queue:
            self._queues.pop(tenant, None)
