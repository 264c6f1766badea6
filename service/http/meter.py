"""Count each tenant's requests and predicted inputs.

A write to the records takes as long as a disk write. So counts are collected in memory and written once a second; a killed process
loses the counts that it has not written. Requests under the limit MAX_REQUESTS_A_MINUTE are counted in the records before they are
answered, but in blocks: a process takes a block of requests for the rest of the minute, and then answers as many without a write.
Once the records have refused a block, the process refuses further requests of that minute by itself, unless the limit changes.
"""

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from service.http.periodic import PeriodicWrites
from service.http.tenant_threads import in_thread
from worker.errors import LimitReached
from worker.ledger.usage import LimitsOf, Usage, Used

_BLOCKS_IN_A_MINUTE = 200
"""A block is the limit divided by this. What a process does not use of its last block is lost to the other ones until the minute
ends; so with N processes the limit may be reached at up to N/200 below its value."""

_MARGIN_SECONDS = 1.0
"""Requests are not given back so shortly before their minute ends, because the call may come after it."""
_DROP_SECONDS = 180.0
"""Time after its last use until a block is forgotten. It is longer than any request waits for a block."""


@dataclass(frozen=True)
class _Refusal:
    """A refusal of a block by the records: until `until`, only `free` requests are not taken."""

    free: int
    until: float  # as `time.monotonic` tells time


@dataclass
class _Block:
    """The requests that this process may still answer for a tenant.

    There are `left`, until `ends`, while the tenant's limit is `most`. `unused`: requests that were taken under an earlier limit,
    and are given back with the next block.
    """

    most: int = 0
    left: int = 0
    unused: int = 0
    ends: float = 0.0  # as `time.monotonic` tells time
    refusal: _Refusal | None = None
    taking: asyncio.Task[None] | None = None  # takes the next block, for all requests that wait for it
    used_at: float = field(default_factory=time.monotonic)

    def of_limit(self, most: int) -> "_Block":
        """Return this block, without what was taken or refused under another limit."""
        if most != self.most:
            self.unused += self.remaining()
            self.most, self.left, self.refusal = most, 0, None
        self.used_at = time.monotonic()
        return self

    def remaining(self) -> int:
        return self.left if time.monotonic() < self.ends else 0

    def refused(self, number: int) -> LimitReached | None:
        """Return the error for `number` requests if it is known that the records would refuse them."""
        known, now, had = self.refusal, time.monotonic(), self.remaining()
        if known is None or now >= known.until or number - had <= known.free:
            return None
        return _limit_reached(self.most, self.most - known.free - had, known.until + 1 - now)


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
        while most := self._limits_of(tenant).get("MAX_REQUESTS_A_MINUTE", 0):
            block = self._blocks.setdefault(tenant, _Block()).of_limit(most)
            if block.remaining() >= number:
                block.left -= number
                return
            if (reached := block.refused(number)) is not None:
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
            # Others may have used the block before this request does.
        self._requests[tenant] += number

    async def _take(self, tenant: str, block: _Block, number: int, most: int) -> None:
        began = time.monotonic()
        had, unused = block.remaining(), block.unused if began < block.ends - _MARGIN_SECONDS else 0
        block.unused, wanted = 0, max(number, most // _BLOCKS_IN_A_MINUTE)
        try:
            added, seconds = await in_thread(self._usage.take_block, tenant, number, wanted, most, unused)
        except LimitReached as reached:
            # This holds until the minute ends, unless another process gives requests back; less one second, by which
            # `retry_after` is rounded.
            if block.most == most:
                block.refusal = _Refusal(most - reached.used, began + reached.retry_after - 1)
            raise _limit_reached(most, reached.used - had, reached.retry_after) from None
        finally:
            block.taking = None  # here and not in a callback: awaiting a task that has ended does not let other tasks run
        ends = began + seconds
        if block.most != most:  # the limit has changed meanwhile
            block.unused, block.ends = block.unused + added, ends
            return
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
        long_ago = time.monotonic() - _DROP_SECONDS
        self._blocks = {tenant: block for tenant, block in self._blocks.items() if block.used_at > long_ago}
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
