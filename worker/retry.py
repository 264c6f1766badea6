"""Retry calls while a Redis server cannot be reached.

A restart of the server then does not cost an adapter that is already computed.
"""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import redis

from worker.draining import DrainTimer
from worker.errors import ClaimLost
from worker.heartbeat import HeldJob

log = logging.getLogger(__name__)
RETRY_SECONDS = 0.25
T = TypeVar("T")


def retry_while_unreachable(call: Callable[[], T], job: HeldJob, *, seconds: float, draining: DrainTimer) -> T:
    """Return `call()`, and retry it for up to `seconds` while the server cannot be reached.

    Raises redis.ResponseError without a retry, because then the server did answer. Raises ClaimLost if the job's claim was lost
    meanwhile, and redis.RedisError once `seconds` have passed or the worker's time to drain is over.
    """
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
