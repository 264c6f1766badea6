"""The durable record of each adapter, and the claim, lease, fence and commit that decide who may write it. Torch-free.

A job is `queued` until a worker claims it, which gives the worker a lease and a fence: a number from one global counter. Only the
holder of the record's current fence may report progress or commit, so a worker that was taken for dead cannot overwrite the
one that replaced it, nor an adapter that was deleted and asked for again. `qs:pending` orders unfinished jobs by when the reaper
should look at them, `qs:retire` orders records by when they may go: no key of a record has a TTL, so no memory policy evicts
one. Times are the Redis server's, so that clocks of several machines do not matter.

Every script is one atomic step; a reader never sees half of one.
"""

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from typing import Any, cast

import redis
from pydantic import BaseModel, ConfigDict

from worker.messages import DONE_CHANNEL, JobRecipe, Outcome, Status

ID_FORMAT = 1
WAKE_AGAIN_MS = 10_000
"""A queued job that no worker has claimed after this long is announced again."""
RETENTION_MS = 7 * 24 * 3600 * 1000
"""A record outlives its adapter's expiry by this long, so that a late reader is told `expired` and not `unknown`."""
_PENDING = "qs:pending"
_RETIRE = "qs:retire"
_FENCE = "qs:fence"
_SEQUENCE = "qs:sequence"

_NOW = "local t = redis.call('TIME'); local now = t[1] * 1000 + math.floor(t[2] / 1000)\n"

# KEYS record, index, pending, sequence, retire. ARGV member, id, ttl_ms, recipe, truncated, wake_ms, retention_ms.
_ACCEPT = (
    _NOW
    + """
local status = redis.call('HGET', KEYS[1], 'status')
local expires = tonumber(redis.call('HGET', KEYS[1], 'expires_at') or 0)
local expire_at = now + tonumber(ARGV[3])
local live = status == 'queued' or status == 'running' or (status == 'ready' and expires > now)
if not live then
  local created = redis.call('HGET', KEYS[1], 'created_at') or now
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'status', 'queued', 'recipe', ARGV[4], 'truncated', ARGV[5], 'created_at', created,
             'queued_at', now, 'attempt', 0, 'fence', 0, 'lease_until', 0)
  if not redis.call('ZSCORE', KEYS[2], ARGV[2]) then redis.call('ZADD', KEYS[2], redis.call('INCR', KEYS[4]), ARGV[2]) end
  redis.call('ZADD', KEYS[3], now + tonumber(ARGV[6]), ARGV[1])
  status = 'queued'
end
redis.call('HSET', KEYS[1], 'ttl_ms', ARGV[3], 'expires_at', expire_at)
redis.call('ZADD', KEYS[5], expire_at + tonumber(ARGV[7]), ARGV[1])
return {live and 0 or 1, status}
"""
)

# KEYS record, pending, fence. ARGV member, lease_ms, attempt cap, worker.
_CLAIM = (
    _NOW
    + """
local r = redis.call('HMGET', KEYS[1], 'status', 'lease_until', 'attempt')
if not r[1] then redis.call('ZREM', KEYS[2], ARGV[1]); return {'gone'} end
if r[1] ~= 'queued' and not (r[1] == 'running' and tonumber(r[2]) < now) then return {'taken'} end
if tonumber(r[3]) >= tonumber(ARGV[3]) then return {'capped'} end
local fence = redis.call('INCR', KEYS[3])
redis.call('HINCRBY', KEYS[1], 'attempt', 1)
redis.call('HSET', KEYS[1], 'status', 'running', 'fence', fence, 'lease_until', now + tonumber(ARGV[2]), 'worker', ARGV[4],
           'support_loss', '[]')
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[2]), ARGV[1])
return {'claimed', fence, redis.call('HGET', KEYS[1], 'recipe'), now - tonumber(redis.call('HGET', KEYS[1], 'queued_at')),
        redis.call('HGET', KEYS[1], 'ttl_ms')}
"""
)

# KEYS record, pending. ARGV member, fence, lease_ms, support_loss ('' leaves it).
_HEARTBEAT = (
    _NOW
    + """
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[2] or redis.call('HGET', KEYS[1], 'status') ~= 'running' then return 0 end
redis.call('HSET', KEYS[1], 'lease_until', now + tonumber(ARGV[3]))
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'support_loss', ARGV[4]) end
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), ARGV[1])
return 1
"""
)

# KEYS record, pending. ARGV member, fence, channel, field, value, field, value …
_COMMIT = (
    _NOW
    + """
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[2] or redis.call('HGET', KEYS[1], 'status') ~= 'running' then return 0 end
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('HDEL', KEYS[1], 'readapting')
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('PUBLISH', ARGV[3], ARGV[1])
return 1
"""
)

# KEYS record, pending. ARGV member, channel, error. Ends a job whose attempts are used up, unless somebody holds it.
_GIVE_UP = (
    _NOW
    + """
local r = redis.call('HMGET', KEYS[1], 'status', 'lease_until')
if r[1] == 'queued' or (r[1] == 'running' and tonumber(r[2]) < now) then
  redis.call('HSET', KEYS[1], 'status', 'failed', 'error', ARGV[3])
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('PUBLISH', ARGV[2], ARGV[1])
end
return 1
"""
)

# KEYS record, index, pending, retire. ARGV member, id, channel. Returns the fence, whose weights the caller removes; nil: unknown.
_DELETE = """
local fence = redis.call('HGET', KEYS[1], 'fence')
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[2])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('PUBLISH', ARGV[3], ARGV[1])
return fence
"""

# KEYS record, pending. ARGV member, fence, wake_ms. A ready job whose weights are gone starts again, if it is still that very one.
_REQUEUE = (
    _NOW
    + """
local r = redis.call('HMGET', KEYS[1], 'status', 'fence')
if r[1] ~= 'ready' or r[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'status', 'queued', 'queued_at', now, 'attempt', 0, 'lease_until', 0, 'readapting', 1)
redis.call('ZADD', KEYS[2], now + tonumber(ARGV[3]), ARGV[1])
return 1
"""
)

# KEYS pending. ARGV most, wake_ms, backlog ('1': the queue has messages still, so a job that was never claimed is not lost).
# Members that are due, put off so that several reapers do not announce the same ones.
_DUE = (
    _NOW
    + """
local due, lost = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1]), {}
for _, member in ipairs(due) do
  redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), member)
  local slash = string.find(member, '/', 1, true)
  local record = 'qs:' .. string.sub(member, 1, slash - 1) .. ':adapter:' .. string.sub(member, slash + 1)
  if ARGV[3] ~= '1' or redis.call('HGET', record, 'status') ~= 'queued' then table.insert(lost, member) end
end
return lost
"""
)


class Record(BaseModel):
    """One adapter's account, as stored; `status` is of the record alone (the cache decides about `evicted`). Times in ms."""

    model_config = ConfigDict(frozen=True)

    tenant: str
    adapter_id: str
    status: Status
    recipe: JobRecipe
    truncated: tuple[int, ...]
    created_at: int
    expires_at: int
    ttl_ms: int
    attempt: int
    fence: int
    readapting: bool = False
    support_loss: tuple[float, ...] = ()
    digest: str | None = None
    error: str | None = None
    timings: dict[str, float] = {}


@dataclass(frozen=True)
class Claim:
    """A worker's right to run one job until its lease ends."""

    tenant: str
    adapter_id: str
    fence: int
    recipe: JobRecipe
    waited_ms: int
    ttl_ms: int


class Records:
    """The records on one Redis. Every method may raise `redis.RedisError` where it is out of reach."""

    def __init__(self, client: "redis.Redis") -> None:
        self._redis = client
        self._accept = client.register_script(_ACCEPT)
        self._claim = client.register_script(_CLAIM)
        self._heartbeat = client.register_script(_HEARTBEAT)
        self._commit = client.register_script(_COMMIT)
        self._give_up = client.register_script(_GIVE_UP)
        self._delete = client.register_script(_DELETE)
        self._requeue = client.register_script(_REQUEUE)
        self._due = client.register_script(_DUE)

    def id_key(self) -> bytes:
        """The secret that adapter ids are keyed with: made once, kept beside the records."""
        self._redis.set("qs:id-key", secrets.token_hex(32), nx=True)
        return bytes.fromhex(_text(self._redis.get("qs:id-key")))

    def accept(
        self, tenant: str, adapter_id: str, recipe: JobRecipe, ttl_ms: int, truncated: tuple[int, ...]
    ) -> tuple[bool, Status]:
        """Write the record before anybody is told of it. Returns (whether there is work to announce, status).

        The same id again is the same job while it is queued, running or ready, its TTL starting anew; after failure or expiry it
        starts afresh.
        """
        keys = [_record(tenant, adapter_id), _index(tenant), _PENDING, _SEQUENCE, _RETIRE]
        arguments: list[Any] = [
            _member(tenant, adapter_id),
            adapter_id,
            ttl_ms,
            recipe.model_dump_json(exclude_defaults=True),
            json.dumps(truncated),
        ]
        created, status = self._accept(keys=keys, args=[*arguments, WAKE_AGAIN_MS, RETENTION_MS])
        return bool(created), cast(Status, _text(status))

    def requeue(self, record: Record) -> bool:
        """Start a ready job again because its weights are gone; its TTL goes on. False where the record is no longer that one:
        deleted meanwhile, or started again by somebody else.
        """
        keys = [_record(record.tenant, record.adapter_id), _PENDING]
        return bool(self._requeue(keys=keys, args=[_member(record.tenant, record.adapter_id), record.fence, WAKE_AGAIN_MS]))

    def claim(self, tenant: str, adapter_id: str, *, lease_ms: int, attempts: int, worker: str) -> Claim | None:
        """Take a job that is queued, or whose worker let its lease run out; None where there is nothing to take.

        A job that has used up its `attempts` ends as failed here.
        """
        keys = [_record(tenant, adapter_id), _PENDING, _FENCE]
        answer = self._claim(keys=keys, args=[_member(tenant, adapter_id), lease_ms, attempts, worker])
        verdict = _text(answer[0])
        if verdict == "capped":
            reason = f"no worker survived this job in {attempts} attempts"
            self._give_up(keys=keys[:2], args=[_member(tenant, adapter_id), DONE_CHANNEL, reason])
        if verdict != "claimed":
            return None
        recipe = JobRecipe.model_validate_json(answer[2])
        return Claim(tenant, adapter_id, int(answer[1]), recipe, int(answer[3]), int(answer[4]))

    def heartbeat(self, claim: Claim, lease_ms: int, support_loss: list[float] | None = None) -> bool:
        """Extend the lease, and report the support loss so far; False where the claim no longer holds."""
        losses = "" if support_loss is None else json.dumps(support_loss)
        keys = [_record(claim.tenant, claim.adapter_id), _PENDING]
        return bool(self._heartbeat(keys=keys, args=[_member(claim.tenant, claim.adapter_id), claim.fence, lease_ms, losses]))

    def commit(self, claim: Claim, outcome: Outcome) -> bool:
        """End the job, only if the claim's fence still holds; False where it does not and nothing was written."""
        fields: dict[str, Any] = {"status": outcome.status, "timings": json.dumps(outcome.timings)}
        fields |= {"support_loss": json.dumps(outcome.support_loss)}
        fields |= {key: value for key, value in (("digest", outcome.digest), ("error", outcome.error)) if value is not None}
        flat: list[Any] = [part for pair in fields.items() for part in pair]
        keys = [_record(claim.tenant, claim.adapter_id), _PENDING]
        return bool(self._commit(keys=keys, args=[_member(claim.tenant, claim.adapter_id), claim.fence, DONE_CHANNEL, *flat]))

    def get(self, tenant: str, adapter_id: str) -> Record | None:
        """The record, with `expired` in place of `ready` once its time is over; None where there is none."""
        raw = cast(dict[bytes, bytes], self._redis.hgetall(_record(tenant, adapter_id)))
        if not raw:
            return None
        fields: dict[str, Any] = {_text(key): _text(value) for key, value in raw.items()}
        for key in ("truncated", "support_loss", "timings"):
            fields[key] = json.loads(fields.get(key) or ("{}" if key == "timings" else "[]"))
        fields["recipe"] = json.loads(fields["recipe"])
        if fields["status"] == "ready" and int(fields["expires_at"]) <= self._now():
            fields["status"] = "expired"
        return Record.model_validate({**fields, "tenant": tenant, "adapter_id": adapter_id})

    def page(self, tenant: str, limit: int, before: int | None) -> tuple[list[Record], int | None]:
        """Records of a tenant, newest first, and the cursor of the next page (None at the end)."""
        found: list[Record] = []
        index, cursor = _index(tenant), before
        while len(found) < limit:
            top: str | float = "+inf" if cursor is None else f"({cursor}"
            rows = cast(
                list[tuple[bytes, float]],
                self._redis.zrevrangebyscore(index, top, "-inf", start=0, num=limit - len(found), withscores=True),
            )
            if not rows:
                return found, None
            for raw, score in rows:
                record = self.get(tenant, _text(raw))
                cursor = int(score)
                if record is None:
                    self._redis.zrem(index, raw)
                else:
                    found.append(record)
        return found, cursor

    def delete(self, tenant: str, adapter_id: str) -> int | None:
        """Remove the record, support text and all. Returns its fence, None where there was no record."""
        keys = [_record(tenant, adapter_id), _index(tenant), _PENDING, _RETIRE]
        fence = self._delete(keys=keys, args=[_member(tenant, adapter_id), adapter_id, DONE_CHANNEL])
        return None if fence is None else int(fence)

    def due(self, most: int = 100, *, backlog: bool = False) -> list[tuple[str, str]]:
        """Unfinished jobs that should be announced again: with a lease that ran out, or never claimed though no message waits
        (`backlog`: some do)."""
        members = self._due(keys=[_PENDING], args=[most, WAKE_AGAIN_MS, "1" if backlog else "0"])
        return [_parts(member) for member in members]

    def retire(self, most: int = 100) -> int:
        """Remove records whose adapters expired long ago; returns how many."""
        members = cast(list[bytes], self._redis.zrangebyscore(_RETIRE, "-inf", self._now(), start=0, num=most))
        for member in members:
            self.delete(*_parts(member))
        return len(members)

    def announce_worker(self, name: str, description: dict[str, Any], seconds: int) -> None:
        """Say that a worker is alive, for `seconds`."""
        self._redis.set(f"qs:worker:{name}", json.dumps(description), ex=seconds)

    def retire_worker(self, name: str) -> None:
        self._redis.delete(f"qs:worker:{name}")

    def workers(self) -> int:
        """How many workers have said so lately."""
        return sum(1 for _ in self._redis.scan_iter(match="qs:worker:*", count=1000))

    def _now(self) -> int:
        seconds, microseconds = self._redis.time()
        return seconds * 1000 + microseconds // 1000


def adapter_id(key: bytes, tenant: str, recipe: JobRecipe) -> str:
    """A keyed digest of all that determines the weights; not the TTL. The same request gives the same id."""
    identity = recipe.model_dump(mode="json", exclude={"initialization"}, exclude_defaults=True)
    content = json.dumps([ID_FORMAT, tenant, identity], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return "a" + hmac.new(key, content.encode(), hashlib.sha256).hexdigest()[:40]


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
