"""Retry calls while a Redis server cannot be reached.

Because of these retries, a restart of the server does not lose an adapter that is already computed.
"""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import redis

from worker.draining import DrainTimer
from worker.errors import ClaimLost
from worker.heartbeat import HeldJob
from worker.watchdog import Watchdog

log = logging.getLogger(__name__)
RETRY_SECONDS = 0.25
_CALL_SECONDS = 35.0
"""Longest time of one call to Redis, by the time-outs of a worker's clients, in seconds."""
T = TypeVar("T")


def retry_while_unreachable(call: Callable[[], T], job: HeldJob, *, seconds: float, draining: DrainTimer, watchdog: Watchdog) -> T:
    """Return `call()`. Retry it for up to `seconds` if the Redis server cannot be reached.

    The watchdog ends the process if it takes much longer than that.

    Raises redis.ResponseError at once, because it means that the server was reached and refused the call. Raises ClaimLost if the
    job's claim was lost between two attempts, and redis.RedisError once `seconds` have passed or the drain time of a stopping
    worker is over.
    """
    with watchdog.limit(seconds + _CALL_SECONDS, [job]):
        return _retry(call, job, seconds, draining)


def _retry(call: Callable[[], T], job: HeldJob, seconds: float, draining: DrainTimer) -> T:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call()
        except redis.exceptions.ResponseError:
            raise
        except redis.RedisError as error:
            if time.monotonic() > deadline or draining.expired():
                raise
            if job.lost.is_set():
                raise ClaimLost from error
            log.warning("Redis is out of reach (%s), trying again", type(error).__name__)
            time.sleep(RETRY_SECONDS)
