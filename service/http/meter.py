"""Counts what tenants ask for. Without a limit of requests nothing is written while somebody waits: what was counted goes to the
records, where a write takes a disk's time, once a second, and what a killed process had not written is lost."""

import asyncio
import contextlib
import logging
from collections import Counter

import redis
from starlette.concurrency import run_in_threadpool

from worker.ledger.usage import Usage, Used

log = logging.getLogger(__name__)
_FLUSH_SECONDS = 1.0


class Meter:
    """`most`: requests of a tenant in a minute, over all replicas; 0: no limit. To be used on the event loop."""

    def __init__(self, usage: Usage, most: int) -> None:
        self._usage, self._most = usage, most
        self._requests: Counter[str] = Counter()
        self._predictions: Counter[str] = Counter()
        self._flushing: asyncio.Task[None] | None = None

    async def request(self, tenant: str, number: int = 1) -> None:
        """Count so many. Raises LimitReached, with none counted, and redis.RedisError where there is a limit and the records are
        out of reach."""
        if self._most:
            await run_in_threadpool(self._usage.take_requests, tenant, number, self._most)
        else:
            self._requests[tenant] += number

    def predicted(self, tenant: str, inputs: int) -> None:
        """Count inputs that were answered."""
        self._predictions[tenant] += inputs

    async def used(self, tenant: str) -> Used:
        """What the tenant has and has done, what this process has counted included. Raises redis.RedisError."""
        await self._flush()
        return await run_in_threadpool(self._usage.of, tenant)

    def begin(self) -> None:
        """Start writing down what is counted. Call on the event loop."""
        self._flushing = asyncio.create_task(self._flush_always(), name="usage")

    async def close(self) -> None:
        """Write down what is left, if the records are in reach."""
        if self._flushing is not None:
            self._flushing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._flushing
        with contextlib.suppress(redis.RedisError):
            await self._flush()

    async def _flush_always(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_SECONDS)
            try:
                await self._flush()
            except redis.RedisError as error:
                log.warning("usage is not written down (%s), trying again", type(error).__name__)

    async def _flush(self) -> None:
        for counter, write in ((self._requests, self._usage.take_requests), (self._predictions, self._usage.add_predictions)):
            for tenant in list(counter):
                number = counter.pop(tenant, 0)  # taken before it is written: another flush must not write it too
                if not number:
                    continue
                try:
                    await run_in_threadpool(write, tenant, number)
                except redis.RedisError:
                    counter[tenant] += number
                    raise
