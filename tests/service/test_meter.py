"""The limit on requests a minute holds over several processes, with few writes."""

import asyncio
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest
import redis

from service.http.meter import Meter
from tests.conftest import RedisServer
from worker.errors import LimitReached
from worker.ledger.usage import LimitsOf, Usage


class CountingUsage(Usage):
    """A `Usage` that counts how often requests were written."""

    writes = 0

    def take_block(self, *arguments: Any) -> tuple[int, float]:
        self.writes += 1
        return super().take_block(*arguments)


def limited(most: int) -> LimitsOf:
    limits: Mapping[str, int] = {"MAX_REQUESTS_A_MINUTE": most}
    return lambda tenant: limits


async def accepted(meter: Meter, number: int, size: int = 1) -> int:
    """Count requests, many at once, and return how many were not refused."""

    async def one() -> bool:
        try:
            await meter.count_requests("t", size)
        except LimitReached as reached:
            assert reached.retry_after >= 1 and reached.used <= reached.most
            return False
        return True

    return sum(await asyncio.gather(*[one() for _ in range(number)]))


def in_one_minute(redis_client: "redis.Redis") -> None:
    """Wait for the next minute of the server if the current one ends soon."""
    seconds = redis_client.time()[0] % 60
    if seconds > 35:  # a busy machine takes long
        time.sleep(60.1 - seconds)


def test_several_processes_together_do_not_pass_the_limit(redis_server: RedisServer, redis_client: "redis.Redis") -> None:
    in_one_minute(redis_client)

    async def scenario() -> None:
        usages = [CountingUsage(redis.Redis.from_url(redis_server.url)) for _ in range(3)]
        meters = [Meter(usage, limited(2_000)) for usage in usages]  # blocks of ten
        counts = await asyncio.gather(*[accepted(meter, 1_000) for meter in meters])
        assert 2_000 - 2 * 9 <= sum(counts) <= 2_000
        assert sum(usage.writes for usage in usages) < 260  # 200 blocks, and a few refusals in each process
        assert usages[0].of("t").requests_this_minute == 2_000

    asyncio.run(scenario())


def test_one_process_reaches_its_limit_exactly_and_writes_seldom(redis_server: RedisServer, redis_client: "redis.Redis") -> None:
    in_one_minute(redis_client)

    async def scenario() -> None:
        usage = CountingUsage(redis.Redis.from_url(redis_server.url))
        meter = Meter(usage, limited(1_000))
        assert await accepted(meter, 501) == 501 and usage.writes == 101
        assert (await meter.used("t")).requests_this_minute == 501  # without what is left of the block
        assert await accepted(meter, 60, size=7) == 60  # more at once than a block
        assert await accepted(meter, 1, size=80) == 0  # 79 are left
        assert (await meter.used("t")).requests_this_minute == 921
        assert await accepted(meter, 100) == 79
        with pytest.raises(LimitReached) as refused:
            await meter.count_requests("t")
        assert (refused.value.limit, refused.value.used) == ("MAX_REQUESTS_A_MINUTE", 1_000)
        asked = usage.writes
        assert await accepted(meter, 100) == await accepted(meter, 1, size=80) == 0 and usage.writes == asked
        assert await accepted(Meter(usage, limited(0)), 5) == 5

    asyncio.run(scenario())


def test_a_changed_limit_holds_at_once_whatever_was_taken_under_the_earlier_one(
    redis_server: RedisServer, redis_client: "redis.Redis"
) -> None:
    in_one_minute(redis_client)
    limits = {"MAX_REQUESTS_A_MINUTE": 60_000}  # blocks of three hundred

    async def scenario() -> None:
        meter = Meter(Usage(redis.Redis.from_url(redis_server.url)), lambda tenant: limits)
        assert await accepted(meter, 1) == 1
        limits["MAX_REQUESTS_A_MINUTE"] = 10
        assert await accepted(meter, 20) == 9  # what was left of the first block is given back
        limits["MAX_REQUESTS_A_MINUTE"] = 40
        assert await accepted(meter, 50) == 30
        assert (await meter.used("t")).requests_this_minute == 40

    asyncio.run(scenario())


def test_a_limit_that_changes_while_requests_wait_for_a_block_holds_for_them(redis_server: RedisServer) -> None:
    limits = {"MAX_REQUESTS_A_MINUTE": 60_000}

    in_one_minute(redis.Redis.from_url(redis_server.url))

    class ChangingUsage(Usage):
        """A `Usage` that lowers the limit while the first block is taken."""

        def take_block(self, *arguments: Any) -> tuple[int, float]:
            limits["MAX_REQUESTS_A_MINUTE"] = 10
            return super().take_block(*arguments)

    async def scenario() -> None:
        meter = Meter(ChangingUsage(redis.Redis.from_url(redis_server.url)), lambda tenant: limits)
        assert await accepted(meter, 50) == 10

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_a_block_is_not_used_after_its_minute(redis_server: RedisServer) -> None:
    class EndingUsage(CountingUsage):
        """A `Usage` whose minutes end after a tenth of a second."""

        def take_block(self, *arguments: Any) -> tuple[int, float]:
            return super().take_block(*arguments)[0], 0.1

    async def scenario() -> None:
        usage = EndingUsage(redis.Redis.from_url(redis_server.url))
        meter = Meter(usage, limited(100_000))
        await meter.count_requests("t")
        await meter.count_requests("t")
        assert usage.writes == 1
        await asyncio.sleep(0.15)
        await meter.count_requests("t")
        assert usage.writes == 2

    asyncio.run(scenario())


def test_all_requests_that_wait_for_a_block_fail_together_if_redis_does() -> None:
    class FailingUsage(CountingUsage):
        """A `Usage` whose Redis fails after a while."""

        def take_block(self, *arguments: Any) -> tuple[int, float]:
            self.writes += 1
            time.sleep(0.2)
            raise redis.TimeoutError

    async def scenario() -> None:
        usage = FailingUsage(redis.Redis())
        meter = Meter(usage, limited(1_000))
        answers = await asyncio.gather(*[meter.count_requests("t") for _ in range(30)], return_exceptions=True)
        assert {type(answer) for answer in answers} == {redis.TimeoutError} and usage.writes == 1

    asyncio.run(scenario())


def test_usage_is_written_again_after_any_error_and_a_tenant_waits_only_for_its_own(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    class BrokenUsage(Usage):
        """A `Usage` that fails at first, and in a way that is not expected."""

        failures = 2

        def take_requests(self, tenant: str, *arguments: Any) -> None:
            if self.failures:
                self.failures -= 1
                raise ValueError("unexpected")
            written.append(tenant)
            super().take_requests(tenant, *arguments)

    monkeypatch.setattr("service.http.periodic.SECONDS", 0.02)

    async def scenario() -> None:
        usage = BrokenUsage(redis.Redis.from_url(redis_server.url))
        meter = Meter(usage, limited(0))
        for tenant in ("a", "b"):
            await meter.count_requests(tenant)
        meter.writes.start()
        while len(written) < 2:
            await asyncio.sleep(0.02)
        usage.failures = 1
        await meter.count_requests("a")
        await meter.writes.close()  # only logs the error
        written.clear()
        for tenant in ("a", "b", "c"):
            await meter.count_requests(tenant)
        await meter.used("b")
        assert written == ["b"]

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_requests_beyond_the_limit_that_keep_coming_do_not_stop_the_event_loop(redis_server: RedisServer) -> None:
    """Send a request in each turn of the event loop: some come just when another was refused."""
    meter, refused = Meter(Usage(redis.Redis.from_url(redis_server.url)), limited(1)), list[int]()

    async def scenario() -> None:
        requests = []
        for _ in range(2_000):
            requests.append(asyncio.create_task(accepted(meter, 1)))
            await asyncio.sleep(0)
        refused.append(len(requests) - sum(await asyncio.gather(*requests)))

    thread = threading.Thread(target=asyncio.run, args=(scenario(),), daemon=True)  # a stopped event loop cannot be cancelled
    thread.start()
    thread.join(60)
    assert refused and refused[0] >= 1_998
