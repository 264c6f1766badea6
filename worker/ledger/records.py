"""The durable record of each adapter, and the claim, lease, fence and commit that decide who may write it. Torch-free.

A job is `queued` until a worker claims it, which gives the worker a lease and a fence: a number from one global counter. Only the
holder of the record's current fence may report progress, commit, or hand the job back, so a worker that was taken for dead cannot
overwrite the one that replaced it, nor an adapter that was deleted and asked for again. A job that has used up its attempts is
dead: it failed with that reason, and waits in `qs:dead` for somebody to look at it. `qs:retire` orders records by when they may
go: no key of a record has a TTL, so no memory policy evicts one. Times are the Redis server's, so that clocks of several machines
do not matter.
"""

import hashlib
import hmac
import json
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, cast

import redis
from pydantic import BaseModel, ConfigDict

from worker.errors import JOB_SECONDS, ROOM_SECONDS, AdapterAliased, AdapterExpired, LimitReached
from worker.ledger import scripts
from worker.ledger.aliases import alias_keys
from worker.ledger.messages import DONE_CHANNEL, JobRecipe, Outcome, RecipeSummary, Status
from worker.ledger.notes import Notes
from worker.logs import fields

log = logging.getLogger(__name__)
ID_FORMAT = 1
WAKE_AGAIN_MS = 10_000
"""A queued job that no worker has claimed after this long is announced again."""
RETENTION_MS = 7 * 24 * 3600 * 1000
"""A record outlives its adapter's expiry by this long, so that a late reader is told `expired` and not `unknown`."""
RECOVERY_BOUNDS_MS = (1_000, 2_500, 5_000, 10_000, 20_000, 40_000, 80_000, 160_000)
JOB_STAGES = ("queue", "tokenize", "inner_loop", "inner_step", "store")
STAGE_BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 120_000)
_LEAST_READ = 50
"""Records that a page with a filter reads at once: few may be wanted."""
_PENDING = "qs:pending"
_RUNNING = "qs:running"
_COUNTS = "qs:counts"
_DEAD = "qs:dead"
_REPLICATION_MS = 2_000
_ERASE, _ERASE_LAST = "qs:erase", "qs:erase-last"
_RETIRE = "qs:retire"
_FENCE = "qs:fence"
_WORKERS, _DESCRIPTIONS = "qs:workers", "qs:worker-descriptions"
_QUEUES = "qs:queues"
_SEQUENCE = "qs:sequence"


Queues = Mapping[str, Sequence[str]]
"""The queues that a worker takes jobs of, each with the digests of the initializations that it may take; any if there are none."""
_ANY: Queues = MappingProxyType({"": ()})


@dataclass(frozen=True)
class Step:
    """How far a job is: what changes while it runs, without its recipe."""

    status: Status
    attempt: int
    fence: int
    support_loss: tuple[float, ...]


@dataclass(frozen=True)
class Kept:
    """How long the weights of a job that has ended are to be kept: `ttl_ms`, or for good."""

    ttl_ms: int
    pinned: bool


class Record(BaseModel):
    """One adapter's account, as stored, but for its recipe (`Records.recipe`); `status` is of the record alone (the cache decides
    about `evicted`). Times in ms."""

    model_config = ConfigDict(frozen=True)

    tenant: str
    adapter_id: str
    status: Status
    summary: RecipeSummary
    truncated: tuple[int, ...]
    created_at: int
    expires_at: int
    ttl_ms: int
    attempt: int
    fence: int
    queue: str = ""
    readapting: bool = False
    pinned: bool = False
    last_error: str | None = None
    recovery_ms: int | None = None
    support_loss: tuple[float, ...] = ()
    digest: str | None = None
    error: str | None = None
    timings: dict[str, float] = {}
    name: str | None = None
    tags: tuple[str, ...] = ()
    parent: str | None = None


_READ = [name for name in Record.model_fields if name not in ("tenant", "adapter_id")]


@dataclass(frozen=True)
class Claim:
    """A worker's right to run one job until its lease ends."""

    tenant: str
    adapter_id: str
    fence: int
    recipe: JobRecipe
    waited_ms: int
    ttl_ms: int
    attempt: int
    request: str
    before: int
    """The fence of the claim before this one, 0 where there was none: weights that it may have left are of no use."""


class NotReplicated(redis.RedisError):
    """A record is written, but on fewer replicas than it should be."""


class Records:
    """The records on one Redis. Every method may raise `redis.RedisError` where it is out of reach.

    `replicas`: so many must have a new record before it counts as accepted, for a master that dies takes with it what only it had.
    """

    def __init__(self, client: "redis.Redis", replicas: int = 0) -> None:
        self._redis, self._replicas = client, replicas
        self._accept = client.register_script(scripts.ACCEPT)
        self._claim = client.register_script(scripts.CLAIM)
        self._heartbeat = client.register_script(scripts.HEARTBEAT)
        self._commit = client.register_script(scripts.COMMIT)
        self._hand_back = client.register_script(scripts.HAND_BACK)
        self._give_up = client.register_script(scripts.GIVE_UP)
        self._delete = client.register_script(scripts.DELETE)
        self._requeue = client.register_script(scripts.REQUEUE)
        self._revive = client.register_script(scripts.REVIVE)
        self._announce = client.register_script(scripts.ANNOUNCE)
        self._pin = client.register_script(scripts.PIN)
        self._annotate = client.register_script(scripts.ANNOTATE)
        self._erased = client.register_script(scripts.ERASED)
        self._erasing: int | None = None
        self._due = client.register_script(scripts.DUE)

    def id_key(self) -> bytes:
        """The secret that adapter ids are keyed with: made once, kept beside the records."""
        self._redis.set("qs:id-key", secrets.token_hex(32), nx=True)
        return bytes.fromhex(_text(self._redis.get("qs:id-key")))

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
    ) -> tuple[bool, Status]:
        """Write the record before anybody is told of it; `queue` is where its wake-ups go. Returns (whether there is work to
        announce, status).

        The same id again is the same job while it is queued, running or ready, its TTL starting anew; after failure or expiry it
        starts afresh. Its notes stay either way, but for those that are given. `limits`: of the tenant, by name, 0 for none;
        `size`: most bytes that the weights will have, which count from now on. Raises LimitReached for a new job that would pass
        one, and NotReplicated, where the same call again is the way on.
        """
        keys = [*_keys(tenant, adapter_id), _index(tenant), _SEQUENCE, _RETIRE, _QUEUES]
        arguments: list[Any] = [
            _member(tenant, adapter_id),
            adapter_id,
            ttl_ms,
            recipe.model_dump_json(exclude_defaults=True),
            json.dumps(truncated),
        ]
        arguments += [WAKE_AGAIN_MS, RETENTION_MS, request, recipe.kin, queue, json.dumps(dict(limits)), size]
        arguments += [recipe.summary.model_dump_json(), *notes.flat()]
        created, said, *refused = self._replicated(lambda pipe: self._accept(keys=keys, args=arguments, client=pipe))
        if refused:
            limit = _text(said)
            raise LimitReached(limit, *map(int, refused), retry_after=JOB_SECONDS if limit == "MAX_JOBS" else ROOM_SECONDS)
        return bool(created), cast(Status, _text(said))

    def _replicated(self, write: Callable[["redis.Redis"], Any]) -> Any:
        """The answer to `write`, once its replicas have it."""
        if not self._replicas:
            return write(self._redis)
        with self._redis.pipeline(transaction=False) as pipe:  # one connection: WAIT is about what its own has written
            write(pipe)
            pipe.wait(self._replicas, _REPLICATION_MS)
            answer, reached = pipe.execute()
        if reached < self._replicas:
            raise NotReplicated(f"on {reached} of {self._replicas} replicas after {_REPLICATION_MS} ms")
        return answer

    def requeue(self, record: Record, why: Literal["evicted", "corrupt"], queue: str = "") -> bool:
        """Start a ready job again because its weights are gone or wrong, which is counted; its TTL goes on. `queue`: of a record
        that has none yet. False where the record is no longer that one: deleted meanwhile, or started again by somebody else.
        """
        arguments: list[Any] = [_member(record.tenant, record.adapter_id), record.fence, WAKE_AGAIN_MS, why, queue]
        return bool(self._requeue(keys=_keys(record.tenant, record.adapter_id), args=arguments))

    def claim(
        self, tenant: str, adapter_id: str, *, lease_ms: int, attempts: int, worker: str, queues: Queues = _ANY
    ) -> Claim | None:
        """Take a job that is queued, or whose worker let its lease run out; None where there is nothing to take, or where none of
        `queues` may take it.

        A job that has used up its `attempts` ends as failed here.
        """
        keys = _keys(tenant, adapter_id)
        answer = self._claim(
            keys=[*keys, _FENCE], args=[_member(tenant, adapter_id), lease_ms, attempts, worker, json.dumps(dict(queues))]
        )
        verdict = _text(answer[0])
        if verdict == "capped":
            reason = f"no worker finished this job in {attempts} attempt{'s' if attempts > 1 else ''}"
            with fields(adapter=adapter_id, tenant=tenant):
                log.warning("dead: %s", reason)
            self._give_up(keys=keys, args=[_member(tenant, adapter_id), DONE_CHANNEL, reason, attempts])
        if verdict != "claimed":
            return None
        recipe = JobRecipe.model_validate_json(answer[2])
        fence, waited, ttl, attempt, before = (int(answer[i]) for i in (1, 3, 4, 5, 7))
        return Claim(tenant, adapter_id, fence, recipe, waited, ttl, attempt, _text(answer[6]), before)

    def waiting(self, kin: str, most: int) -> list[tuple[str, str]]:
        """(tenant, adapter id) of jobs of a kin that wait for their first attempt, those that have waited longest first. To be
        claimed like any other: somebody else may be faster."""
        members = cast(list[bytes], self._redis.zrange(f"qs:waiting:{kin}", 0, most - 1)) if most else []
        return [_parts(member) for member in members]

    def heartbeat(self, claim: Claim, lease_ms: int, support_loss: list[float] | None = None) -> bool:
        """Extend the lease, and report the support loss so far; False where the claim no longer holds."""
        losses = "" if support_loss is None else json.dumps(support_loss)
        arguments: list[Any] = [_member(claim.tenant, claim.adapter_id), claim.fence, lease_ms, losses]
        return bool(self._heartbeat(keys=_keys(claim.tenant, claim.adapter_id), args=arguments))

    def commit(self, claim: Claim, outcome: Outcome) -> Kept | None:
        """End the job, only if the claim's fence still holds; None where it does not and nothing was written. May be said
        again where the answer was lost."""
        fields: dict[str, Any] = {"status": outcome.status, "timings": json.dumps(outcome.timings)}
        fields |= {"support_loss": json.dumps(outcome.support_loss)}
        fields |= {key: value for key, value in (("digest", outcome.digest), ("error", outcome.error)) if value is not None}
        flat: list[Any] = [part for pair in fields.items() for part in pair]
        bounds = json.dumps(RECOVERY_BOUNDS_MS)
        arguments: list[Any] = [_member(claim.tenant, claim.adapter_id), claim.fence, DONE_CHANNEL, bounds, outcome.digest or ""]
        arguments.append(outcome.size)
        answer = self._commit(keys=_keys(claim.tenant, claim.adapter_id), args=[*arguments, *flat])
        return None if answer is None else Kept(int(answer[0]), _text(answer[1]) == "1")

    def hand_back(self, claim: Claim, reason: str, *, delay_ms: int, counts: bool) -> bool:
        """Let the job wait again, to be announced after `delay_ms`; `counts`: this was one of its attempts. False where the claim
        no longer holds."""
        arguments: list[Any] = [_member(claim.tenant, claim.adapter_id), claim.fence, delay_ms, reason, "1" if counts else "0"]
        return bool(self._hand_back(keys=_keys(claim.tenant, claim.adapter_id), args=arguments))

    def dead(self, most: int = 1000) -> list[Record]:
        """Jobs that used up their attempts, the latest first."""
        members = cast(list[bytes], self._redis.zrevrange(_DEAD, 0, most - 1))
        return [record for member in members if (record := self.get(*_parts(member))) is not None]

    def revive(self, tenant: str, adapter_id: str) -> bool:
        """Let a dead job wait again with all its attempts; False where it is not dead."""
        keys = [*_keys(tenant, adapter_id), _RETIRE]
        return bool(self._revive(keys=keys, args=[_member(tenant, adapter_id), RETENTION_MS]))

    def pin(self, tenant: str, adapter_id: str, pinned: bool) -> int | None:
        """Keep an adapter from expiring, or have its TTL start anew. Returns that TTL in ms, None where there is no record.
        Raises AdapterExpired where its time is over already."""
        arguments: list[Any] = [_member(tenant, adapter_id), int(pinned), RETENTION_MS]
        ttl = self._pin(keys=[*_keys(tenant, adapter_id), _RETIRE], args=arguments)
        if ttl == -1:
            raise AdapterExpired(adapter_id)
        return None if ttl is None else int(ttl)

    def unfinished(self, tenant: str) -> int:
        """How many jobs of a tenant are queued or running."""
        return self._redis.scard(f"qs:{tenant}:unfinished")

    def annotate(self, tenant: str, adapter_id: str, notes: Notes) -> bool:
        """False where there is no record."""
        return bool(self._annotate(keys=[_record(tenant, adapter_id)], args=notes.flat()))

    def observe(self, stages_ms: Mapping[str, Sequence[float]]) -> None:
        """Count milliseconds by stage of jobs that have ended: how many, their sum, and how many were within each bound."""
        sums: Counter[str] = Counter()
        for stage, times in stages_ms.items():
            sums[f"stage_{stage}_count"] += len(times)
            sums[f"stage_{stage}_us"] += round(1e3 * sum(times))
            sums.update(f"stage_{stage}_le_{bound}" for spent in times for bound in STAGE_BOUNDS_MS if spent <= bound)
        with self._redis.pipeline(transaction=False) as pipe:
            for name, by in sums.items():
                pipe.hincrby(_COUNTS, name, by)
            pipe.execute()

    def counts(self) -> dict[str, int]:
        """What has happened since the records began, by name, and how many jobs are `queued` and `running` now."""
        with self._redis.pipeline() as pipe:
            pipe.hgetall(_COUNTS)
            pipe.zcard(_PENDING)
            pipe.zcard(_RUNNING)
            counted, pending, running = pipe.execute()
        happened = {_text(name): int(value) for name, value in counted.items()}
        return {**happened, "now_queued": max(0, pending - running), "now_running": running}

    def get(self, tenant: str, adapter_id: str) -> Record | None:
        """The record, with `expired` in place of `ready` once its time is over; None where there is none."""
        content = cast(list[bytes | None], self._redis.hmget(_record(tenant, adapter_id), _READ))
        return self._record_of(tenant, adapter_id, content, self._now())

    def recipe(self, tenant: str, adapter_id: str) -> JobRecipe | None:
        """What the adapter is made from, every example's text; None where there is no record."""
        content = cast(bytes | None, self._redis.hget(_record(tenant, adapter_id), "recipe"))
        return None if content is None else JobRecipe.model_validate_json(content)

    def _record_of(self, tenant: str, adapter_id: str, content: list[bytes | None], now: int) -> Record | None:
        """From the values of `_READ`."""
        raw = {name: _text(value) for name, value in zip(_READ, content, strict=True) if value is not None}
        if "status" not in raw:
            return None
        if "summary" not in raw:  # it was accepted before there were summaries
            recipe = self.recipe(tenant, adapter_id)
            if recipe is None:
                return None
            raw["summary"] = recipe.summary.model_dump_json()
        return _read(tenant, adapter_id, raw, now)

    def step(self, tenant: str, adapter_id: str) -> Step | None:
        """How far a job is, for who looks again and again; None where there is no record."""
        wanted = ["status", "attempt", "fence", "support_loss"]
        raw = cast(list[bytes | None], self._redis.hmget(_record(tenant, adapter_id), wanted))
        if raw[0] is None:
            return None
        status, attempt, fence, losses = (_text(value or b"") for value in raw)
        return Step(cast(Status, status), int(attempt), int(fence), tuple(json.loads(losses or "[]")))

    def page(
        self, tenant: str, limit: int, before: int | None, wanted: Callable[[Record], bool] | None = None, most: int = 1000
    ) -> tuple[list[Record], int | None]:
        """Records of a tenant, newest first, and the cursor of the next page (None at the end). `wanted` chooses among them; then
        there may be fewer than `limit` before the end, once `most` were looked at."""
        found: list[Record] = []
        index, cursor, left = _index(tenant), before, most
        while len(found) < limit and left > 0:
            number = limit - len(found) if wanted is None else min(left, max(_LEAST_READ, limit - len(found)))
            top: str | float = "+inf" if cursor is None else f"({cursor}"
            rows = cast(
                list[tuple[bytes, float]],
                self._redis.zrevrangebyscore(index, top, "-inf", start=0, num=number, withscores=True),
            )
            if not rows:
                return found, None
            with self._redis.pipeline(transaction=False) as pipe:
                for raw, _ in rows:
                    pipe.hmget(_record(tenant, _text(raw)), _READ)
                contents, now = pipe.execute(), self._now()
            for (raw, score), content in zip(rows, contents, strict=True):
                if len(found) == limit:
                    break
                cursor, left = int(score), left - 1
                record = self._record_of(tenant, _text(raw), content, now)
                if record is None:
                    self._redis.zrem(index, raw)
                elif wanted is None or wanted(record):
                    found.append(record)
        return found, cursor

    def delete(self, tenant: str, adapter_id: str, *, only: Literal["", "dead", "over"] = "") -> int | None:
        """Remove the record, support text and all; `only` if it is dead, or its time is over, and then with the aliases that
        point at it. Returns its fence, None where there was no such record. Raises AdapterAliased where aliases point at it."""
        keys = [*_keys(tenant, adapter_id), _index(tenant), _RETIRE, _ERASE, _ERASE_LAST, *alias_keys(tenant, adapter_id)]
        fence = self._delete(keys=keys, args=[_member(tenant, adapter_id), adapter_id, DONE_CHANNEL, only])
        if isinstance(fence, list):
            raise AdapterAliased(sorted(map(_text, fence)))
        return None if fence is None else int(fence)

    def queues(self) -> list[str]:
        """Every queue that ever had a job."""
        return sorted(_text(name) for name in cast(set[bytes], self._redis.smembers(_QUEUES)))

    def due(self, most: int = 100, *, oldest: Mapping[str, tuple[str, str]] = MappingProxyType({})) -> list[tuple[str, str, str]]:
        """(tenant, adapter id, queue) of unfinished jobs that should be announced again: with a lease that ran out, handed back, or
        never claimed although their wake-up is gone. `oldest`: by queue, the job whose wake-up has waited longest, where one
        waits. The queue is empty for a job that was accepted before there were several."""
        keys = [_PENDING, *(_record(*job) for job in oldest.values())]
        found = self._due(keys=keys, args=[most, WAKE_AGAIN_MS, *oldest])
        return [(*_parts(member), _text(queue)) for member, queue in zip(found[::2], found[1::2], strict=True)]

    def retire(self, most: int = 100) -> list[tuple[str, str, int]]:
        """Remove records whose adapters expired long ago; returns (tenant, adapter id, fence) of them."""
        members = cast(list[bytes], self._redis.zrangebyscore(_RETIRE, "-inf", self._now(), start=0, num=most))
        gone = [(tenant, identity, self.delete(tenant, identity, only="over")) for tenant, identity in map(_parts, members)]
        return [(tenant, identity, fence) for tenant, identity, fence in gone if fence is not None]

    def erase(self, after_ms: int) -> bool:
        """Have the server write its append-only file anew, `after_ms` after a deletion, for the file still holds the deleted
        text; to be called again and again. True once a file without it is there. Raises redis.ResponseError where the server does
        not allow it."""
        since = cast(bytes | None, self._redis.get(_ERASE))
        if since is None:
            return False
        state = self._redis.info("persistence")
        if state["aof_rewrite_in_progress"] or state.get("aof_rewrite_scheduled"):
            return False
        if self._erasing is not None and state["aof_last_bgrewrite_status"] == "ok":
            began, self._erasing = self._erasing, None
            return bool(self._erased(keys=[_ERASE, _ERASE_LAST], args=[began]))
        now = self._now()
        if now - int(since) >= after_ms:
            self._redis.bgrewriteaof()
            self._erasing = now
        return False

    def announce_worker(self, name: str, description: dict[str, Any], seconds: int) -> None:
        """Say that a worker is alive, for `seconds`."""
        self._announce(keys=[_WORKERS, _DESCRIPTIONS], args=[name, json.dumps(description), 1000 * seconds])

    def retire_worker(self, name: str) -> None:
        with self._redis.pipeline() as pipe:
            pipe.zrem(_WORKERS, name)
            pipe.hdel(_DESCRIPTIONS, name)
            pipe.execute()

    def workers(self) -> dict[str, int]:
        """How many workers have said so lately, by queue."""
        names = cast(list[bytes], self._redis.zrangebyscore(_WORKERS, f"({self._now()}", "+inf"))
        said = cast(list[bytes | None], self._redis.hmget(_DESCRIPTIONS, names)) if names else []
        described = [json.loads(each) for each in said if each is not None]
        return dict(Counter(queue for each in described for queue in each.get("queues", [each.get("queue", "")])))

    def _now(self) -> int:
        seconds, microseconds = self._redis.time()
        return seconds * 1000 + microseconds // 1000


def adapter_id(key: bytes, tenant: str, recipe: JobRecipe) -> str:
    """A keyed digest of all that determines the weights; not the TTL. The same request gives the same id."""
    identity = recipe.model_dump(mode="json", exclude={"initialization"}, exclude_defaults=True)
    content = json.dumps([ID_FORMAT, tenant, identity], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return "a" + hmac.new(key, content.encode(), hashlib.sha256).hexdigest()[:40]


def _read(tenant: str, adapter_id: str, raw: Mapping[str, str], now: int) -> Record:
    """As it is stored → as it is at `now`."""
    fields: dict[str, Any] = dict(raw)
    for key in ("truncated", "support_loss", "timings", "tags"):
        fields[key] = json.loads(fields.get(key) or ("{}" if key == "timings" else "[]"))
    fields["summary"] = json.loads(fields["summary"])
    over = fields.get("pinned") != "1" and int(fields["expires_at"]) <= now
    if fields["status"] == "ready" and over:
        fields["status"] = "expired"
    return Record.model_validate({**fields, "tenant": tenant, "adapter_id": adapter_id})


def _keys(tenant: str, adapter_id: str) -> list[str]:
    """What every script of one job is given first."""
    return [_record(tenant, adapter_id), _PENDING, _RUNNING, _COUNTS, _DEAD]


def _record(tenant: str, adapter_id: str) -> str:
    return f"qs:{tenant}:adapter:{adapter_id}"


def _index(tenant: str) -> str:
    return f"qs:{tenant}:adapters"


def _member(tenant: str, adapter_id: str) -> str:
    return f"{tenant}/{adapter_id}"


def _parts(member: bytes) -> tuple[str, str]:
    tenant, adapter_id = _text(member).split("/", 1)
    return tenant, adapter_id


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
