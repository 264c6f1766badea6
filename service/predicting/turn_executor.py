"""Threads that take the work of tenants in turn."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class TurnExecutor:
    """A pool of threads with a queue for each tenant.

    A free thread runs the next work of the tenant whose turn it is. So work of a tenant waits for at most one piece of work of each
    other tenant, however much they have submitted.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._queues: dict[str, deque[Callable[[], None]]] = {}  # by tenant, the one whose turn is next first
        self._lock = threading.Lock()

    def submit(self, tenant: str, work: Callable[[], None]) -> None:
        """Run `work` in a thread when it is its tenant's turn.

        It must not raise an error, because nobody would see it. Raises RuntimeError after `shutdown`.
        """
        with self._lock:
            self._queues.setdefault(tenant, deque()).append(work)
        self._executor.submit(self._run_next)

    def _run_next(self) -> None:
        with self._lock:
            tenant = next(iter(self._queues))
            queue = self._queues.pop(tenant)
            work = queue.popleft()
            if queue:
                self._queues[tenant] = queue  # behind the other tenants
        work()

    def shutdown(self) -> None:
        """Run all submitted work, then end the threads."""
        self._executor.shutdown()
