"""A circuit breaker for one Redis server: calls fail at once while the server does not answer.

A server that is frozen still accepts connections, so each call would wait for its own time-out, and a request that makes several
calls would wait several times. With the breaker, only the calls that are already waiting when the server freezes wait, each for at
most `ANSWER_SECONDS`. The first time-out opens the breaker. From then on calls fail at once, and a thread probes the server until
it answers, which closes the breaker.

Services use it, because their callers should get a 503 within two seconds. Workers do not: they wait for the server, so that no
finished work is lost.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

log = logging.getLogger(__name__)
ANSWER_SECONDS = 1.3
"""How long a call of a service waits for the server, in seconds. Longer than a second, because a disk may take that long to write
(`fsync`), and short enough that a request ends within two seconds."""
_PROBE_PAUSE_SECONDS = 0.25
T = TypeVar("T")


class ServerSilent(redis.ConnectionError):
    """The server did not answer an earlier call in time, and has not answered a probe since."""


class CircuitBreaker:
    """Thread-safe.

    `probe` calls the server once, with a time-out, and raises redis.RedisError if that fails.
    """

    def __init__(self, probe: Callable[[], object]) -> None:
        self._probe, self._open, self._lock = probe, False, threading.Lock()

    def check(self) -> None:
        """Raise ServerSilent if the breaker is open."""
        if self._open:
            raise ServerSilent("the server does not answer")

    def trip(self) -> None:
        """Open the breaker after a time-out, and start the thread that probes the server."""
        with self._lock:
            if self._open:
                return
            self._open = True
        log.warning("a Redis server did not answer within %g s; calls fail at once until it does", ANSWER_SECONDS)
        try:
            threading.Thread(target=self._close_once_answered, name="probe-redis", daemon=True).start()
        except RuntimeError as error:  # this process may start no more threads: without a probe, the breaker would stay open
            self._open = False
            log.warning("the Redis server cannot be probed (%s); calls wait for it until one of them can start a probe", error)

    def call(self, action: Callable[[], T]) -> T:
        """Return `action()`, which calls the server. Raises ServerSilent at once if the breaker is open.

        A redis.TimeoutError of the action, or one that caused its error, opens the breaker.
        """
        self.check()
        try:
            return action()
        except Exception as error:
            if _is_timeout(error):
                self.trip()
            raise

    def _close_once_answered(self) -> None:
        while True:
            try:
                self._probe()
            except redis.TimeoutError:
                time.sleep(_PROBE_PAUSE_SECONDS)
                continue
            except Exception as error:  # such as a refused connection: calls find that out themselves, without waiting
                log.info("probe: %s", type(error).__name__)
            self._open = False
            log.warning("the Redis server answers again")
            return


class FailFast(Retry):
    """A retry policy of redis-py that never retries, and passes all calls through a breaker."""

    def __init__(self, breaker: CircuitBreaker) -> None:
        super().__init__(NoBackoff(), 0)
        self.breaker = breaker

    def __deepcopy__(self, memo: dict[int, Any]) -> "FailFast":
        return self  # redis-py copies the policy for each connection, but all connections share one breaker

    def call_with_retry(self, do: Callable[[], T], *arguments: Any, **named: Any) -> T:
        return self.breaker.call(lambda: super(FailFast, self).call_with_retry(do, *arguments, **named))


def breaker_of(client: "redis.Redis") -> CircuitBreaker | None:
    """Return the breaker that the calls of a client pass through, or None if it has none."""
    policy = client.get_retry()
    return policy.breaker if isinstance(policy, FailFast) else None


def _is_timeout(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, redis.TimeoutError):
            return True
        error = error.__cause__ or error.__context__
    return False
