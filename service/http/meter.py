"""Count each tenant's requests and predicted inputs.

A write to the records takes as long as a disk write. So counts are collected in memory and written once a second; a killed process
loses the counts that it has not written. Requests under the limit MAX_REQUESTS_A_MINUTE are counted in the records before they are
answered, but in blocks: a process takes a block of requests for the rest of the minute, and then answers as many without a write.
Once the records have refused a block, the process refuses further requests of that minute by itself.
"""

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from service.http.periodic import PeriodicWrites
from service.http.tenant_threads import in_thread
from worker.errors import LimitReached
from worker.ledger.usage import LimitsOf, Usage, Used

_BLOCKS_IN_A_MINUTE = 200
"""A block is the limit divided by this. What a process does not use of its last block is lost to the other ones until the minute
ends; so with N processes the limit may be reached at up to N/200 below its value."""


@dataclass(frozen=True)
class _Refusal:
    """What is known until `until` after the records have refused a block: of the `most` requests a minute, `free` are not taken."""

    most: int
    free: int
    until: float  # as `time.monotonic` tells time


@dataclass
class _Block:
    """The requests that this process may still answer for a tenant: `left`, until `ends`."""

    left: int = 0
    ends: float = 0.0  # as `time.monotonic` tells time
    refusal: _Refusal | None = None
    taking: asyncio.Task[None] | None = None  # takes the next block, for all requests that wait for it

    def remaining(self) -> int:
        return self.left if time.monotonic() < self.ends else 0

    def refused(self, number: int, most: int) -> LimitReached | None:
        """Return the error for `number` requests if it is known that the records would refuse them."""
        known, now, had = self.refusal, time.monotonic(), self.remaining()
        if known is None or known.most != most or now >= known.until or number - had <= known.free:
            return None
        return _limit_reached(most, most - known.free - had, known.until + 1 - now)


class Meter:
    """Counts requests and predictions of each tenant. Must be used on the event loop.

    The limit on a tenant's requests per minute holds for all replicas together. `writes` writes the counts to the records.
    """

    def __init__(self, usage: Usage, limits_of: LimitsOf) -> None:
        self._usage, self._limits_of = usage, limits_of
        self._blocks: dict[str, _Block] = {}
        self._requests: Counter[str] = Counter()
        self._predictions: Counter[str] = Counter()
        self.writes = PeriodicWrites("counts of usage", self._write_all)

    async def count_requests(self, tenant: str, number: int = 1) -> None:
        """Count `number` requests of a tenant.

        Raises LimitReached, without counting any of them, if they would exceed the limit. If there is a limit, also raises
        redis.RedisError if the records cannot be reached.
        """
        most = self._limits_of(tenant).get("MAX_REQUESTS_A_MINUTE", 0)
        if not most:
            self._requests[tenant] += number
            return
        block = self._blocks.setdefault(tenant, _Block())
        while block.remaining() < number:  # others may use the block before this request does
            if (reached := block.refused(number, most)) is not None:
                raise reached
            if block.taking is None:
                block.taking = asyncio.create_task(self._take(tenant, block, number - block.remaining(), most))
                block.taking.add_done_callback(_read_error)
                await asyncio.shield(block.taking)
            else:
                # An error of Redis is that of all who wait, so that they do not wait for it one after the other. A refusal is not,
                # because others may need fewer requests.
                with contextlib.suppress(LimitReached):
                    await asyncio.shield(block.taking)
        block.left -= number

    async def _take(self, tenant: str, block: _Block, number: int, most: int) -> None:
        began = time.monotonic()
        had = block.remaining()
        try:
            added, seconds = await in_thread(self._usage.take_block, tenant, number, max(number, most // _BLOCKS_IN_A_MINUTE), most)
        except LimitReached as reached:
            # Requests are only added to a minute, so this holds until it ends; less one second, by which `retry_after` is rounded.
            block.refusal = _Refusal(most, most - reached.used, began + reached.retry_after - 1)
            raise _limit_reached(most, reached.used - had, reached.retry_after) from None
        finally:
            block.taking = None  # here and not in a callback: awaiting a task that has ended does not let other tasks run
        ends = began + seconds
        # The two blocks are of the same minute unless the first one has ended meanwhile.
        block.left = added + (block.left if had and block.remaining() else 0)
        block.ends = ends

    def count_predictions(self, tenant: str, inputs: int) -> None:
        """Add `inputs`, a number of predicted inputs, to a tenant's count."""
        self._predictions[tenant] += inputs

    async def used(self, tenant: str) -> Used:
        """Return the tenant's usage, including what this process has counted. Raises redis.RedisError."""
        await self._flush([tenant])
        used = await in_thread(self._usage.of, tenant)
        unused = self._blocks[tenant].remaining() if tenant in self._blocks else 0
        return replace(used, requests_this_minute=max(0, used.requests_this_minute - unused))

    async def _write_all(self, _last: bool) -> None:
        for tenant, block in list(self._blocks.items()):
            if not block.remaining() and block.taking is None:
                del self._blocks[tenant]
        await self._flush({**self._requests, **self._predictions})

    async def _flush(self, tenants: Iterable[str]) -> None:
        for counter, write in ((self._requests, self._usage.take_requests), (self._predictions, self._usage.add_predictions)):
            for tenant in tenants:
                number = counter.pop(tenant, 0)  # removed before the write, so that a concurrent flush does not write it too
                if not number:
                    continue
                try:
                    await in_thread(write, tenant, number)
                except Exception:
                    counter[tenant] += number
                    raise


def _limit_reached(most: int, used: int, seconds: float) -> LimitReached:
    return LimitReached("MAX_REQUESTS_A_MINUTE", most, used, retry_after=max(1, math.ceil(seconds)))


def _read_error(taking: asyncio.Task[None]) -> None:
    if not taking.cancelled():
        taking.exception()  # read here, because the request that would read it may be gone
