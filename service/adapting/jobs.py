"""Queue jobs for the workers, and wait for jobs to end."""

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
    """The service's side of the job queue.

    Every method may raise `redis.RedisError` if the records cannot be reached.
    """

    def __init__(
        self, records: Records, app: Celery, redis_url: str, limits: Mapping[str, int], size_of: Callable[[JobRecipe], int]
    ) -> None:
        """Set up the queue; nothing connects yet.

        `limits`: the limits on a tenant, by name, for `Records.accept`. `size_of` returns an upper bound on the bytes of a
        recipe's weights.
        """
        self._records, self._app = records, app
        self._redis_url = redis_url
        self._limits, self._size_of = limits, size_of
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._listener: asyncio.Task[None] | None = None
        self.stopping = False
        """True once the service shuts down: requests that wait for a job are then answered at once."""

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
        """Record the job and wake a worker of `queue`; return the record's status.

        If the same job is queued, running or ready already, only its time to live starts again. Raises LimitReached.
        """
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
            self._wake(tenant, adapter_id, queue)  # the record is written: a retry must not wait for the reaper's wake-up
            raise
        if created:
            self._wake(tenant, adapter_id, queue)
        return status

    def readapt(self, record: Record, why: Literal["evicted", "corrupt"], queue: str) -> None:
        """Queue an adapter again whose weights are evicted or corrupt.

        Does nothing if the adapter was deleted or is queued already. `queue` is used if the record names none. Raises
        LimitReached; the limit is checked before the job is queued, so several calls at once may exceed it together.
        """
        most, used = self._limits.get("MAX_JOBS", 0), self._records.unfinished(record.tenant)
        if 0 < most <= used:
            raise LimitReached("MAX_JOBS", most, used, retry_after=JOB_SECONDS)
        if self._records.requeue(record, why, queue):
            self._wake(record.tenant, record.adapter_id, record.queue or queue)

    def _wake(self, tenant: str, adapter_id: str, queue: str) -> None:
        """Send a wake-up for a job.

        It may be lost: the record has the job, and the reaper repeats wake-ups that no worker answers.
        """
        try:
            self._app.send_task(ADAPT_TASK, kwargs=wake_up(tenant, adapter_id), priority=IN_TURN, queue=queue)
        except OperationalError as error:
            with fields(adapter=adapter_id, tenant=tenant):
                log.warning("wake-up not delivered: %s", type(error).__name__)

    async def wait(self, tenant: str, adapter_id: str, seconds: float) -> Record | None:
        """Wait until the job ends, the adapter is deleted, `seconds` have passed or the service stops.

        Returns the record at that moment, None if the adapter was deleted.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        with self.subscribe(tenant, adapter_id) as ended:
            while True:
                ended.clear()  # before reading, so that a job that ends between the read and the wait is not missed
                record = await run_in_threadpool(self._records.get, tenant, adapter_id)
                left = deadline - loop.time()
                if record is None or record.status not in ("queued", "running") or left <= 0 or self.stopping:
                    return record
                # Read again every second: messages are lost while the subscription reconnects.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), min(left, 1.0))

    @contextlib.contextmanager
    def subscribe(self, tenant: str, adapter_id: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set, while the block runs, whenever the adapter's job ends or it is deleted."""
        ended, member = asyncio.Event(), f"{tenant}/{adapter_id}"
        self._waiting[member].add(ended)
        try:
            yield ended
        finally:
            self._waiting[member].discard(ended)
            if not self._waiting[member]:
                del self._waiting[member]

    def listen(self) -> None:
        """Start to listen for ended jobs. Must be called on the event loop."""
        self._listener = asyncio.create_task(self._listen_for_ended_jobs(), name="ended-jobs")

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listener

    async def _listen_for_ended_jobs(self) -> None:
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
                log.warning("Redis cannot be reached (%s), subscribing again", type(error).__name__)
                await asyncio.sleep(1)
            finally:
                await client.aclose()
