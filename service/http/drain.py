"""Stop a service without losing a request: refuse new requests while the running ones are answered."""

import asyncio

from service.errors import NotReady, ServiceError, Unavailable
from service.http.hosts import ALIVE, READY

_RETRY_SECONDS = 2


class Drain:
    """The requests that a service is answering, and whether it takes new ones.

    Must be used on the event loop, except that a signal handler may call `stop`.
    """

    def __init__(self) -> None:
        self.stopping = False
        """True once the service takes no new requests."""
        self.gave_up = False
        """True once the running requests were cancelled, because their time was over."""
        self._running: set[asyncio.Task[object]] = set()

    def stop(self) -> None:
        """Refuse new requests from now on."""
        self.stopping = True

    def refusal(self, path: str) -> ServiceError | None:
        """Return the error that a new request for `path` gets, or None if it is answered.

        A service that stops is still alive: `/healthz` is answered, so that nobody kills it for that.
        """
        if not self.stopping or path == ALIVE:
            return None
        if path == READY:
            return NotReady("the service is stopping", _RETRY_SECONDS, missing=["service"])
        return Unavailable("the service is stopping and takes no new requests", _RETRY_SECONDS)

    def cut_off(self) -> Unavailable:
        """Return the error that a request gets which was still running when the time to stop was over."""
        return Unavailable("the service stopped before this request was answered", _RETRY_SECONDS)

    def enter(self) -> "asyncio.Task[object] | None":
        """Count the current task as a running request, and return it."""
        if (task := asyncio.current_task()) is not None:
            self._running.add(task)
        return task

    def leave(self, task: "asyncio.Task[object] | None") -> None:
        """Count the request of `task` as answered."""
        if task is not None:
            self._running.discard(task)

    def running(self) -> int:
        """Return the number of requests that are not yet answered."""
        return len(self._running)

    def give_up(self) -> None:
        """Cancel the running requests. They are answered with `cut_off`, as far as no answer has begun."""
        self.gave_up = True
        for task in self._running:
            task.cancel()
