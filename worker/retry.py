"""Repeat a call while its Redis server is away, so that a restart of the server does not discard a computed adapter."""

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


def retry_while_away(ask: Callable[[], T], job: HeldJob, *, seconds: float, draining: DrainTimer) -> T:
    """Return `ask()`, repeated for up to `seconds` while the server cannot be reached.

    Raises redis.ResponseError at once: the server answered. Raises ClaimLost if the job was lost meanwhile, and redis.RedisError
    if the time is over or the worker has to stop.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except redis.exceptions.ResponseError:
            raise
        except redis.RedisError as error:
            if time.monotonic() > until or draining.expired():
                raise
            if job.lost.is_set():
                raise ClaimLost from error
            log.warning("%s, trying again", type(error).__name__)
            time.sleep(RETRY_SECONDS)
