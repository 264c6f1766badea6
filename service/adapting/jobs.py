"""Queue jobs for the workers, and wait for jobs to end."""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Literal

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from metatrain.models.description import BaseDescription
from service.http.tenant_threads import in_thread
from worker.errors import RETRY_JOB_SECONDS, LimitReached
from worker.initializations import KnownInitializations
from worker.ledger.breaker import CircuitBreaker
from worker.ledger.idempotency import IdempotencyKey
from worker.ledger.messages import ADAPT_TASK, DONE_CHANNEL, IN_TURN, JobRecipe, Status, wake_up
from worker.ledger.notes import Notes
from worker.ledger.record import Record
from worker.ledger.records import Records
from worker.ledger.servers import subscriber
from worker.ledger.usage import LimitsOf
from worker.logs import current_request, fields
from worker.wake_ups import wake_up_message

log = logging.getLogger(__name__)


class Jobs:
    """The job queue as the service uses it: it queues jobs and waits for them, but runs none.

    Every method may raise `redis.RedisError` if the records cannot be reached.
    """

    def __init__(
        self,
        records: Records,
        app: Celery,
        redis_url: str,
        limits_of: LimitsOf,
        size_of: Callable[[JobRecipe], int],
        known: KnownInitializations[BaseDescription],
        breaker: CircuitBreaker | None = None,
    ) -> None:
        """Create the queue without connecting to Redis.

        `limits_of` returns the limits of a tenant by name, as for `Records.accept`. `size_of` returns an upper bound on the bytes
        of the weights that a recipe produces. `known` has the initializations that recipes name, to store them beside the records.
        `breaker` is the circuit breaker of the records, which wake-ups pass through too, because they go to the same server.
        """
        self._records, self._app = records, app
        self._redis_url = redis_url
        self._limits_of, self._size_of, self._known, self._breaker = limits_of, size_of, known, breaker
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
        cost: int,
        idempotency: IdempotencyKey | None = None,
    ) -> Status:
        """Record a job together with a wake-up for the workers of `queue`, and return the record's status.

        If the same job is already queued, running or ready, no new job is created: only its time to live starts again. In any case,
        the values set in `notes` replace the stored ones. `cost`: how far the job moves its tenant's turn. Raises LimitReached if a
        new job would exceed one of the tenant's limits, and KeyUsed if the idempotency key was used otherwise.
        """
        _, status = self._records.accept(
            tenant,
            adapter_id,
            recipe,
            ttl_ms,
            truncated,
            request=current_request(),
            queue=queue,
            notes=notes,
            size=self._size_of(recipe),
            limits=self._limits_of(tenant),
            cost=cost,
            initialization=lambda: self._known.to_store(recipe.initialization_digest),
            idempotency=idempotency,
            wake_up=wake_up_message(self._app, tenant, adapter_id, queue),
        )
        return status

    def check_room(self, tenant: str, adapter_id: str, recipe: JobRecipe, idempotency: IdempotencyKey | None) -> None:
        """Raise LimitReached if a limit of the tenant would refuse this job. Writes nothing."""
        size, limits = self._size_of(recipe), self._limits_of(tenant)
        self._records.check_room(tenant, adapter_id, recipe, size=size, limits=limits, idempotency=idempotency)

    def readapt(self, record: Record, why: Literal["evicted", "corrupt"], queue: str) -> None:
        """Queue the job of an adapter again because its weights were evicted or are corrupt.

        Does nothing if the adapter was deleted or is already queued again. `queue`: the queue of such jobs now, which replaces the
        one in the record. Raises LimitReached if the tenant already has MAX_JOBS unfinished jobs. Several calls at the same time
        may together exceed this limit, because it is checked before the job is queued.
        """
        most, used = self._limits_of(record.tenant).get("MAX_JOBS", 0), self._records.unfinished(record.tenant)
        if 0 < most <= used:
            raise LimitReached("MAX_JOBS", most, used, retry_after=RETRY_JOB_SECONDS)
        digest = record.summary.initialization_digest
        if self._known.in_memory(digest) is not None and not self._records.initializations.has(digest):
            self._records.initializations.store(digest, self._known.to_store(digest))  # accepted by a version that stored none
        if self._records.requeue(record, why, queue):
            self._wake(record.tenant, record.adapter_id, queue or record.queue)

    def _wake(self, tenant: str, adapter_id: str, queue: str) -> None:
        """Send a wake-up message for a job that is queued again.

        The message may get lost. The job is safe in its record, and the workers' reaper thread repeats the wake-up until a worker
        claims the job.
        """

        def send() -> None:
            self._app.send_task(ADAPT_TASK, kwargs=wake_up(tenant, adapter_id), priority=IN_TURN, queue=queue)

        try:
            if self._breaker is None:
                send()
            else:
                self._breaker.call(send)
        except (OperationalError, redis.RedisError) as error:
            with fields(adapter=adapter_id, tenant=tenant):
                log.warning("wake-up not delivered: %s", type(error).__name__)

    async def wait(self, tenant: str, adapter_id: str, seconds: float) -> Record | None:
        """Wait until the job ends, the adapter is deleted, `seconds` have passed or the service stops.

        Returns the record after the wait, or None if the adapter was deleted.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        with self.subscribe(tenant, adapter_id) as ended:
            while True:
                ended.clear()  # cleared before the read, so that a job that ends between the read and the wait is not missed
                record = await in_thread(self._records.get, tenant, adapter_id)
                left = deadline - loop.time()
                if record is None or record.status not in ("queued", "running") or left <= 0 or self.stopping:
                    return record
                # Read the record every second too, because messages are lost while the subscription reconnects.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), min(left, 1.0))

    @contextlib.contextmanager
    def subscribe(self, tenant: str, adapter_id: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set each time the adapter's job ends or the adapter is deleted.

        The subscription ends with the `with` block. The service never clears the event; the caller has to.
        """
        ended, member = asyncio.Event(), f"{tenant}/{adapter_id}"
        self._waiting[member].add(ended)
        try:
            yield ended
        finally:
            self._waiting[member].discard(ended)
            if not self._waiting[member]:
                del self._waiting[member]

    def listen(self) -> None:
        """Start the task that listens for ended jobs and sets the events of `subscribe`.

        Call it on the event loop.
        """
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
