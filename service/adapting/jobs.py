"""Hands work to the workers by name, and waits for what comes of it."""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import redis
from celery import Celery
from kombu.exceptions import OperationalError
from starlette.concurrency import run_in_threadpool

from worker.errors import JOB_SECONDS, LimitReached
from worker.ledger.messages import ADAPT_TASK, DONE_CHANNEL, IN_TURN, JobRecipe, Status, wake_up
from worker.ledger.notes import Notes
from worker.ledger.record import Record
from worker.ledger.records import NotReplicated, Records
from worker.ledger.servers import subscriber
from worker.logs import current_request, fields

log = logging.getLogger(__name__)


class Jobs:
    """The service's end of the queue. Methods raise `redis.RedisError` where the records are out of reach."""

    def __init__(
        self, records: Records, app: Celery, redis_url: str, limits: Mapping[str, int], size_of: Callable[[JobRecipe], int]
    ) -> None:
        """`limits` of a tenant, as `Records.accept` takes them; `size_of`: what a recipe's weights take at most, in bytes."""
        self._records, self._app = records, app
        self._redis_url = redis_url
        self._limits, self._size_of = limits, size_of
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._listener: asyncio.Task[None] | None = None
        self.stopping = False
        """Set when the service is told to stop: then nobody is kept waiting."""

    def start(
        self,
        tenant: str,
        adapter_id: str,
        recipe: JobRecipe,
        ttl_ms: int,
        truncated: tuple[int, ...],
        notes: Notes = Notes(),
        *,
        queue: str,
    ) -> Status:
        """Write the record, then wake a worker of `queue`. Raises LimitReached."""
        try:
            created, status = self._records.accept(
                tenant,
                adapter_id,
                recipe,
                ttl_ms,
                truncated,
                request=current_request(),
                queue=queue,
                notes=notes,
                size=self._size_of(recipe),
                limits=self._limits,
            )
        except NotReplicated:
            self._wake(tenant, adapter_id, queue)  # it is written; who asks again must not wait for the reaper
            raise
        if created:
            self._wake(tenant, adapter_id, queue)
        return status

    def start_again(self, record: Record, why: Literal["evicted", "corrupt"], queue: str) -> None:
        """Have an adapter made again whose weights are gone or wrong; does nothing where it was deleted or is being made
        already. `queue`: of a record that has none. Raises LimitReached, by what is counted before: several at once may pass it
        together."""
        most, used = self._limits.get("MAX_JOBS", 0), self._records.unfinished(record.tenant)
        if 0 < most <= used:
            raise LimitReached("MAX_JOBS", most, used, retry_after=JOB_SECONDS)
        if self._records.requeue(record, why, queue):
            self._wake(record.tenant, record.adapter_id, record.queue or queue)

    def _wake(self, tenant: str, adapter_id: str, queue: str) -> None:
        """May be lost: the job is in its record, and the reaper repeats what goes unanswered."""
        try:
            self._app.send_task(ADAPT_TASK, kwargs=wake_up(tenant, adapter_id), priority=IN_TURN, queue=queue)
        except OperationalError as error:
            with fields(adapter=adapter_id, tenant=tenant):
                log.warning("wake-up not delivered: %s", type(error).__name__)

    async def wait(self, tenant: str, adapter_id: str, seconds: float) -> Record | None:
        """The record as soon as its job has ended or was deleted, or as it is after `seconds` or when the service stops."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        with self.hearing(tenant, adapter_id) as ended:
            while True:
                ended.clear()  # before looking, so that an end between the look and the wait is not missed
                record = await run_in_threadpool(self._records.get, tenant, adapter_id)
                left = deadline - loop.time()
                if record is None or record.status not in ("queued", "running") or left <= 0 or self.stopping:
                    return record
                # Looks again each second all the same: a publication is lost while the subscription reconnects.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), min(left, 1.0))

    @contextlib.contextmanager
    def hearing(self, tenant: str, adapter_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the adapter's job ends or it is deleted, while the block runs."""
        ended, member = asyncio.Event(), f"{tenant}/{adapter_id}"
        self._waiting[member].add(ended)
        try:
            yield ended
        finally:
            self._waiting[member].discard(ended)
            if not self._waiting[member]:
                del self._waiting[member]

    def listen(self) -> None:
        """Start hearing of ended jobs. Call on the event loop."""
        self._listener = asyncio.create_task(self._hear(), name="ended-jobs")

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listener

    async def _hear(self) -> None:
        while True:
            client = subscriber(self._redis_url)
            try:
                async with client.pubsub() as channel:
                    await channel.subscribe(DONE_CHANNEL)
                    async for message in channel.listen():
                        if message["type"] == "message":
                            for ended in self._waiting.get(message["data"].decode(), ()):
                                ended.set()
            except (redis.RedisError, OSError) as error:
                log.warning("Redis is out of reach (%s), subscribing again", type(error).__name__)
                await asyncio.sleep(1)
            finally:
                await client.aclose()
