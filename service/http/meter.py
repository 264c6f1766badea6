"""Count each tenant's requests and predicted inputs.

A write to the records takes as long as a disk write. So counts are collected in memory and written once a second; a killed process
loses the counts that it has not written. The requests of a tenant with a limit, MAX_REQUESTS_A_MINUTE, are instead counted in the
records at once.
"""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping

import redis
from starlette.concurrency import run_in_threadpool

from worker.ledger.usage import Usage, Used

log = logging.getLogger(__name__)
_FLUSH_SECONDS = 1.0


class Meter:
    """Counts requests and predictions of each tenant. Must be used on the event loop.

    `limits_of` returns the limits of a tenant by name. MAX_REQUESTS_A_MINUTE holds for all replicas together; 0: no limit.
    """

    def __init__(self, usage: Usage, limits_of: Callable[[str], Mapping[str, int]]) -> None:
        self._usage, self._limits_of = usage, limits_of
        self._requests: Counter[str] = Counter()
        self._predictions: Counter[str] = Counter()
        self._flushing: asyncio.Task[None] | None = None

    async def count_requests(self, tenant: str, number: int = 1) -> None:
        """Count `number` requests of a tenant.

        Raises LimitReached, without counting any of them, if they would exceed the limit. If there is a limit, also raises
        redis.RedisError if the records cannot be reached.
        """
        if most := self._limits_of(tenant)["MAX_REQUESTS_A_MINUTE"]:
            await run_in_threadpool(self._usage.take_requests, tenant, number, most)
        else:
            self._requests[tenant] += number

    def count_predictions(self, tenant: str, inputs: int) -> None:
        """Add `inputs`, a number of predicted inputs, to a tenant's count."""
        self._predictions[tenant] += inputs

    async def used(self, tenant: str) -> Used:
        """Return the tenant's usage, including what this process has counted. Raises redis.RedisError."""
        await self._flush()
        return await run_in_threadpool(self._usage.of, tenant)

    def start(self) -> None:
        """Start to write the counts to the records once a second."""
        self._flushing = asyncio.create_task(self._flush_periodically(), name="usage")

    async def close(self) -> None:
        """Stop the task of `start` and write the remaining counts.

        The remaining counts are lost if the records cannot be reached.
        """
        if self._flushing is not None:
            self._flushing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._flushing
        with contextlib.suppress(redis.RedisError):
            await self._flush()

    async def _flush_periodically(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_SECONDS)
            try:
                await self._flush()
            except redis.RedisError as error:
                log.warning("usage could not be written to the records (%s), trying again", type(error).__name__)

    async def _flush(self) -> None:
        for counter, write in ((self._requests, self._usage.take_requests), (self._predictions, self._usage.add_predictions)):
            for tenant in list(counter):
                number = counter.pop(tenant, 0)  # removed before the write, so that a concurrent flush does not write it too
                if not number:
                    continue
                try:
                    await run_in_threadpool(write, tenant, number)
                except redis.RedisError:
                    counter[tenant] += number
                    raise
