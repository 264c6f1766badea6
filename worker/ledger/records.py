"""The records: accept a job, read and change the record of its adapter, delete the record.

A job is `queued` until a worker claims it (`claims.py`), then `running`, and ends as `ready` or `failed`. The record is written
before a wake-up message for the job is sent. The message only names the job; the record contains everything needed to run it.
Further operations, such as claims, are attributes of `Records`, with one file each.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, cast

import redis

from worker.errors import RETRY_JOB_SECONDS, ROOM_SECONDS, AdapterAliased, AdapterExpired, KeyUsed, LimitReached
from worker.ledger import audit, ids, names, scripts
from worker.ledger.claims import Claims
from worker.ledger.clock import to_ms
from worker.ledger.counts import Counts
from worker.ledger.dead_jobs import DeadJobs
from worker.ledger.encryption import PLAIN, Cipher, field_name
from worker.ledger.idempotency import KEPT_MS, ExpiredKeys, IdempotencyKey
from worker.ledger.initializations import Initializations, StoredInitialization
from worker.ledger.messages import DONE_CHANNEL, IN_TURN, JobRecipe, Status
from worker.ledger.names import text
from worker.ledger.notes import Notes
from worker.ledger.queue_load import QueueLoads
from worker.ledger.record import FIELDS, JOB_STATE_FIELDS, JobState, Record, parse_record, sealed_field, stored_fields
from worker.ledger.retention import KEEP_EXPIRED_RECORDS_MS, Retention
from worker.ledger.waiting import ANNOUNCE_AGAIN_MS, WaitingJobs
from worker.ledger.workers import Workers

REPLICATION_TIMEOUT_MS = 1_000
"""How long a new record may take to reach its replicas, in milliseconds. Less than a service waits for an answer."""
_NOT_STORED, _KEY_USED = -2, -3
FILTERED_PAGE_MIN_READ = 50
"""The minimum number of records that `Records.page` reads at once if a filter is given, because few records may match."""


class NotReplicated(redis.RedisError):
    """A record was written, but to fewer replicas than required."""


class Records:
    """Stores records in Redis. Every method raises `redis.RedisError` if Redis cannot be reached.

    `replicas`: how many replicas must have a new record before its job is accepted. If the master is lost, every record that no
    replica has is lost too. `cipher`: seals and opens the fields that are derived from examples. Methods that read records raise
    EncryptionKeyMissing if it lacks the key of a record.
    """

    def __init__(self, client: "redis.Redis", replicas: int = 0, cipher: Cipher = PLAIN) -> None:
        self._redis, self._replicas, self._cipher = client, replicas, cipher
        self.claims = Claims(client, cipher)
        self.waiting = WaitingJobs(client)
        self.dead_jobs = DeadJobs(client, self.get)
        self.retention = Retention(client, partial(self.delete, only="over"))
        self.workers = Workers(client)
        self.counts = Counts(client)
        self.queue_loads = QueueLoads(client)
        self.initializations = Initializations(client)
        self.expired_keys = ExpiredKeys(client)
        self._accept = scripts.register(client, "accept")
        self._refusal = scripts.register(client, "refusal")
        self._requeue = scripts.register(client, "requeue")
        self._pin = scripts.register(client, "pin")
        self._annotate = scripts.register(client, "annotate")
        self._delete = scripts.register(client, "delete")

    def id_key(self) -> bytes:
        """Return the secret key for computing adapter ids."""
        return ids.id_key(self._redis, self._cipher)

    def accept(
        self,
        tenant: str,
        adapter_id: str,
        recipe: JobRecipe,
        ttl_ms: int,
        truncated: tuple[int, ...],
        request: str = "",
        *,
        queue: str = "",
        notes: Notes = Notes(),
        size: int = 0,
        limits: Mapping[str, int] = MappingProxyType({}),
        initialization: Callable[[], StoredInitialization] | None = None,
        cost: int = 1,
        idempotency: IdempotencyKey | None = None,
        wake_up: str = "",
    ) -> tuple[bool, Status]:
        """Accept a job, and write its record if the job is new. Return (created, status).

        If a job with this id is queued, running or ready, no new job is created and only its TTL restarts. If it failed or expired,
        it is queued as a new job. In each case the given notes replace stored ones, and stored notes that are not given are kept.

        `truncated`: the positions of the examples whose text was cut. `request`: the id of the request. `size`: the largest
        possible size of the weights in bytes, which the tenant's usage includes from now on. `limits`: the tenant's limits by
        name, 0 for no limit. `initialization`: returns the job's initialization. It is stored if it is not stored yet,
        and no new record is written without it; None skips this. `cost`: how far the job moves its tenant's turn. `idempotency`:
        the request's idempotency key, which is stored with the job. `wake_up`: a message that is put into `queue` together with the
        record of a new job, so that a worker starts it at once; without one, the reaper announces the job after a while.

        Raises LimitReached if a new job would exceed a limit, and KeyUsed if the key was used otherwise. Raises NotReplicated if
        too few replicas have the record in time; the caller can then repeat the same call.
        """
        keys = [*names.job_keys(tenant, adapter_id), names.adapters(tenant), names.SEQUENCE, names.RETIRE, names.QUEUES]
        keys += [names.wake_ups(queue, IN_TURN)]
        keys += [names.initialization(recipe.initialization_digest)] if initialization is not None else []
        arguments: list[Any] = [
            names.member(tenant, adapter_id),
            adapter_id,
            ttl_ms,
            self._sealed(tenant, adapter_id, "recipe", recipe.model_dump_json(exclude_defaults=True)),
            json.dumps(truncated),
            ANNOUNCE_AGAIN_MS,
            KEEP_EXPIRED_RECORDS_MS,
            request,
            recipe.pass_key,
            queue,
            json.dumps(dict(limits)),
            size,
            self._sealed(tenant, adapter_id, "summary", recipe.summary.model_dump_json()),
            cost,
            _idempotency_argument(tenant, idempotency),
            wake_up,
            *self._sealed_notes(tenant, adapter_id, notes),
            "initialization_digest",
            recipe.initialization_digest,
        ]

        def write() -> list[Any]:
            return list(self._write_replicated(lambda client: self._accept(keys=keys, args=arguments, client=client)))

        answer = write()
        while initialization is not None and answer == [_NOT_STORED]:
            self.initializations.store(recipe.initialization_digest, initialization())
            answer = write()
        if answer[0] == _KEY_USED:
            raise KeyUsed(text(answer[1]) or None)
        created, status_or_limit, *refused = answer
        if refused:
            raise _limit_reached([status_or_limit, *refused])
        return bool(created), cast(Status, text(status_or_limit))

    def check_room(
        self,
        tenant: str,
        adapter_id: str,
        recipe: JobRecipe,
        *,
        size: int,
        limits: Mapping[str, int],
        idempotency: IdempotencyKey | None = None,
    ) -> None:
        """Raise LimitReached if `accept` would now refuse this job because of a limit. Writes nothing.

        A job that passes this check can still be refused by `accept`, because others may be accepted in between.
        """
        arguments: list[Any] = [names.member(tenant, adapter_id), json.dumps(dict(limits)), size]
        arguments.append(len(recipe.model_dump_json(exclude_defaults=True).encode()) + self._cipher.added_bytes)
        arguments.append(_idempotency_argument(tenant, idempotency))
        refused = self._refusal(keys=[names.record(tenant, adapter_id)], args=arguments)
        if refused:
            raise _limit_reached(refused)

    def accepted_with(self, tenant: str, idempotency: IdempotencyKey) -> bool:
        """Return True if an equal request with the same idempotency key was accepted before."""
        stored = self._redis.get(names.idempotency(tenant, idempotency.digest))
        return stored is not None and text(cast(bytes, stored)).split(" ")[0] == idempotency.request

    def _sealed(self, tenant: str, adapter_id: str, field: str, value: str) -> bytes:
        return sealed_field(tenant, adapter_id, field, value, self._cipher)

    def _sealed_notes(self, tenant: str, adapter_id: str, notes: Notes) -> list[Any]:
        flat = notes.flat()
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return [part for field, value in pairs for part in (field, self._sealed(tenant, adapter_id, field, value))]

    def _write_replicated(self, write: Callable[["redis.Redis"], Any]) -> Any:
        """Run `write(client)`, and return its answer once enough replicas have the written data.

        Raises NotReplicated if they do not have it after the timeout.
        """
        if not self._replicas:
            return write(self._redis)
        with self._redis.pipeline(transaction=False) as pipe:  # WAIT covers only the writes of its own connection
            write(pipe)
            pipe.wait(self._replicas, REPLICATION_TIMEOUT_MS)
            answer, replicated = pipe.execute()
        if replicated < self._replicas:
            raise NotReplicated(f"on {replicated} of {self._replicas} replicas after {REPLICATION_TIMEOUT_MS} ms")
        return answer

    def requeue(self, record: Record, why: Literal["evicted", "corrupt"], queue: str = "") -> bool:
        """Queue a ready job again because its weights are missing or wrong.

        Increments the event count named by `why`. The TTL is not restarted. `queue`: the queue of such jobs now, which differs from
        the one in the record after a change of the encryption key; "" keeps that one. Returns False if the record was deleted or
        queued again since `record` was read.
        """
        arguments: list[Any] = [names.member(record.tenant, record.adapter_id), record.fence, ANNOUNCE_AGAIN_MS, why, queue]
        return bool(self._requeue(keys=names.job_keys(record.tenant, record.adapter_id), args=arguments))

    def unfinished(self, tenant: str) -> int:
        """Return how many jobs of a tenant are queued or running."""
        return self._redis.scard(names.unfinished(tenant))

    def get(self, tenant: str, adapter_id: str) -> Record | None:
        """Return the record of an adapter, or None if there is none.

        A ready adapter whose expiry has passed has the status `expired`.
        """
        with self._redis.pipeline(transaction=False) as pipe:  # one round trip for both
            pipe.hmget(names.record(tenant, adapter_id), FIELDS)
            pipe.time()
            values, now = pipe.execute()
        return self._parse(tenant, adapter_id, values, to_ms(now))

    def recipe(self, tenant: str, adapter_id: str) -> JobRecipe | None:
        """Return the recipe of an adapter, with all its examples; None if there is no record."""
        key = names.record(tenant, adapter_id)
        content = cast(bytes | None, self._redis.hget(key, "recipe"))
        return None if content is None else JobRecipe.model_validate_json(self._cipher.open(field_name(key, "recipe"), content))

    def job_state(self, tenant: str, adapter_id: str) -> JobState | None:
        """Return the progress of a job, or None if there is no record.

        It reads only the fields that change, so it is cheap enough for polling.
        """
        values = cast(list[bytes | None], self._redis.hmget(names.record(tenant, adapter_id), JOB_STATE_FIELDS))
        if values[0] is None:
            return None
        status, attempt, fence, losses = (text(value or b"") for value in values)
        return JobState(cast(Status, status), int(attempt), int(fence), tuple(json.loads(losses or "[]")))

    def page(
        self, tenant: str, limit: int, before: int | None, wanted: Callable[[Record], bool] | None = None, most: int = 1000
    ) -> tuple[list[Record], int | None]:
        """Return up to `limit` records of a tenant, newest first, and the cursor of the next page.

        `before`: the cursor that the previous page returned, or None for the first page. The last page returns the cursor None.
        `wanted`: a filter. A page ends after reading `most` records, so with a filter it may contain fewer than `limit` records
        even if more pages follow.
        """
        matching: list[Record] = []
        index, cursor, left = names.adapters(tenant), before, most
        while len(matching) < limit and left > 0:
            number = limit - len(matching) if wanted is None else min(left, max(FILTERED_PAGE_MIN_READ, limit - len(matching)))
            top: str | float = "+inf" if cursor is None else f"({cursor}"
            rows = cast(
                list[tuple[bytes, float]],
                self._redis.zrevrangebyscore(index, top, "-inf", start=0, num=number, withscores=True),
            )
            if not rows:
                return matching, None
            with self._redis.pipeline(transaction=False) as pipe:
                for raw, _ in rows:
                    pipe.hmget(names.record(tenant, text(raw)), FIELDS)
                pipe.time()
                *contents, time = pipe.execute()
            now = to_ms(time)
            for (raw, score), values in zip(rows, contents, strict=True):
                if len(matching) == limit:
                    break
                cursor, left = int(score), left - 1
                record = self._parse(tenant, text(raw), values, now)
                if record is None:
                    self._redis.zrem(index, raw)
                elif wanted is None or wanted(record):
                    matching.append(record)
        return matching, cursor

    def _parse(self, tenant: str, adapter_id: str, values: list[bytes | None], now: int) -> Record | None:
        """Parse a record from the Redis values of `FIELDS`. Return None if the record does not exist."""
        stored = stored_fields(names.record(tenant, adapter_id), values, self._cipher)
        if "status" not in stored:
            return None
        if "summary" not in stored:  # the record was written by a version without summaries
            recipe = self.recipe(tenant, adapter_id)
            if recipe is None:
                return None
            stored["summary"] = recipe.summary.model_dump_json()
        return parse_record(tenant, adapter_id, stored, now)

    def pin(self, tenant: str, adapter_id: str, pinned: bool) -> int | None:
        """Pin an adapter, so that it does not expire, or unpin it, which restarts its TTL.

        Returns the TTL in ms, or None if there is no record. Raises AdapterExpired if the adapter has already expired.
        """
        arguments: list[Any] = [names.member(tenant, adapter_id), int(pinned), KEEP_EXPIRED_RECORDS_MS]
        ttl = self._pin(keys=[*names.job_keys(tenant, adapter_id), names.RETIRE], args=arguments)
        if ttl == -1:
            raise AdapterExpired(adapter_id)
        return None if ttl is None else int(ttl)

    def annotate(self, tenant: str, adapter_id: str, notes: Notes) -> bool:
        """Change the name, tags or parent of an adapter. Return False if there is no record."""
        return bool(self._annotate(keys=[names.record(tenant, adapter_id)], args=self._sealed_notes(tenant, adapter_id, notes)))

    def delete(self, tenant: str, adapter_id: str, *, only: Literal["", "dead", "over"] = "") -> int | None:
        """Delete a record with its examples. Return its fence, or None if nothing was deleted.

        `only` is a condition: `dead` deletes the record only if the job is dead, `over` only if the time for its removal
        (`qs:retire`) has come. With a condition, aliases that point at the adapter are deleted too. Without one, raises
        AdapterAliased if there are such aliases. The weights are not deleted: their key contains the returned fence.

        The audit log gets an entry, unless `only` is `over`: that an expired record is removed follows from its time to live. It
        gets an entry for each alias that is deleted in any case.
        """
        keys = [*names.job_keys(tenant, adapter_id), names.adapters(tenant), names.RETIRE, names.ERASE, names.ERASE_LAST]
        keys += names.alias_keys(tenant, adapter_id)
        arguments = [names.member(tenant, adapter_id), adapter_id, DONE_CHANNEL, only, audit.script_context(tenant)]
        fence = self._delete(keys=keys, args=arguments)
        if isinstance(fence, list):
            raise AdapterAliased(sorted(map(text, fence)))
        if fence is None:
            return None
        if only != "over":
            audit.log_change("adapter.deleted", adapter_id)
        return int(fence)


def _idempotency_argument(tenant: str, key: IdempotencyKey | None) -> str:
    return (
        ""
        if key is None
        else json.dumps({"key": names.idempotency(tenant, key.digest), "request": key.request, "kept_ms": KEPT_MS})
    )


def _limit_reached(refused: list[Any]) -> LimitReached:
    """Return the error for what the Lua function `refusal` returned: limit, its value, usage now."""
    limit = text(refused[0])
    return LimitReached(limit, *map(int, refused[1:]), retry_after=RETRY_JOB_SECONDS if limit == "MAX_JOBS" else ROOM_SECONDS)
