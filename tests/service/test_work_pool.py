"""Blocking work takes tenants in turn, and none of them takes all threads."""

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from service.errors import Overloaded
from service.http.tenant_threads import TenantThreads, in_thread
from service.http.work_pool import WorkPool
from tests.servers import until


def test_tenants_take_turns_and_one_tenant_leaves_a_thread_free() -> None:
    done: list[str] = []

    async def scenario() -> None:
        pool, gate = WorkPool(2), threading.Event()
        first = asyncio.create_task(pool.run("noisy", gate.wait, 10))
        noisy = [asyncio.create_task(pool.run("noisy", done.append, f"noisy {n}")) for n in range(6)]
        await asyncio.sleep(0.05)
        assert done == []  # the noisy tenant's only thread is busy
        await asyncio.wait_for(pool.run("quiet", done.append, "quiet"), 5)
        assert done == ["quiet"]
        held = asyncio.create_task(pool.run("third", gate.wait, 10))  # now both threads are busy
        later = [asyncio.create_task(pool.run(tenant, done.append, tenant)) for tenant in ("a", "a", "a", "b")]
        await asyncio.sleep(0.05)
        assert done == ["quiet"]
        gate.set()
        await asyncio.gather(first, *noisy, held, *later)
        assert set(done[1:4]) == {"noisy 0", "a", "b"}  # everybody's first before anybody's second
        assert [each for each in done if each.startswith("noisy")] == [f"noisy {n}" for n in range(6)]
        pool.close()

    asyncio.run(scenario())


def test_work_beyond_the_bounds_is_refused_at_once_and_cancelled_work_makes_room() -> None:
    async def scenario() -> None:
        pool, gate = WorkPool(2, waiting=3, waiting_of_tenant=2), threading.Event()
        tasks = [asyncio.create_task(pool.run("noisy", gate.wait, 10)) for _ in range(3)]
        await asyncio.sleep(0.05)
        with pytest.raises(Overloaded, match="2 requests of this tenant") as refused:
            await pool.run("noisy", time.sleep, 0)
        assert int(refused.value.headers["Retry-After"]) >= 1
        assert await pool.run("quiet", lambda: 5) == 5
        tasks.append(asyncio.create_task(pool.run("quiet", gate.wait, 10)))
        tasks.append(asyncio.create_task(pool.run("quiet", gate.wait, 10)))
        await asyncio.sleep(0.05)
        with pytest.raises(Overloaded, match="3 requests of all tenants"):
            await pool.run("third", time.sleep, 0)
        tasks.pop(1).cancel()
        await asyncio.sleep(0)
        last = asyncio.create_task(pool.run("third", lambda: 6))
        await asyncio.sleep(0.05)
        gate.set()
        assert await asyncio.wait_for(last, 5) == 6
        await asyncio.gather(*tasks)
        pool.close()

    asyncio.run(scenario())


def test_work_that_is_cancelled_as_its_turn_comes_is_skipped() -> None:
    async def scenario() -> None:
        pool, gate = WorkPool(2), threading.Event()
        first = asyncio.create_task(pool.run("t", gate.wait, 10))
        second, third = (asyncio.create_task(pool.run("t", int, n)) for n in (2, 3))
        await asyncio.sleep(0.05)
        errors: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context["message"]))
        end = pool._end

        def end_while_cancelled(tenant: str, seconds: float) -> None:
            second.cancel()  # its task resumes only after this callback
            end(tenant, seconds)

        pool._end = end_while_cancelled  # type: ignore[method-assign]
        gate.set()
        assert await first and await asyncio.wait_for(third, 5) == 3
        with pytest.raises(asyncio.CancelledError):
            await second
        await asyncio.sleep(0.05)
        assert not errors and not pool._queues and pool._running.total() == 0
        pool.close()

    asyncio.run(scenario())


def test_an_error_reaches_the_caller_and_a_cancelled_caller_keeps_its_thread_busy() -> None:
    async def scenario() -> None:
        pool, gate, ended = WorkPool(2), threading.Event(), threading.Event()

        def fails() -> None:
            raise ValueError("no")

        def waits() -> None:
            gate.wait(10)
            ended.set()

        with pytest.raises(ValueError, match="no"):
            await pool.run("t", fails)
        cancelled = asyncio.create_task(pool.run("t", waits))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        next_one = asyncio.create_task(pool.run("t", ended.is_set))
        await asyncio.sleep(0.05)
        assert not next_one.done()
        gate.set()
        assert await next_one
        pool.close()

    asyncio.run(scenario())


def test_a_tenant_that_waits_for_a_slow_server_with_all_its_threads_delays_no_other() -> None:
    async def scenario() -> None:
        threads, gate, waiting = TenantThreads(3), threading.Event(), []

        async def call(tenant: str, function: Callable[[], object]) -> object:
            with threads.of(tenant):
                return await in_thread(function)

        def wait() -> None:
            waiting.append(1)
            gate.wait(10)

        noisy = [asyncio.create_task(call("noisy", wait)) for _ in range(100)]
        await asyncio.to_thread(until, lambda: len(waiting) == 3)
        assert await asyncio.wait_for(call("quiet", lambda: 7), 5) == 7
        assert len(waiting) == 3
        gate.set()
        await asyncio.gather(*noisy)
        assert len(waiting) == 100

    asyncio.run(scenario())
