"""The names of all Redis keys, and what each key stores.

Keys of the deployment:

| key | type | holds |
|---|---|---|
| `qs:pending` | sorted set | unfinished jobs; score: when the reaper must check them next |
| `qs:running` | sorted set | claimed jobs; score: end of the lease |
| `qs:dead` | sorted set | jobs that used up their attempts; score: when they failed |
| `qs:turns_in:QUEUE` | sorted set | tenants with waiting jobs; score: the virtual time at which their next turn starts |
| `qs:turns_idle:QUEUE` | sorted set | tenants without waiting jobs that do not start at the queue's virtual time; score: when |
| `qs:turn_time:QUEUE` | number | the queue's virtual time: when the latest turn started |
| `qs:waiting_in:TENANT:QUEUE` | sorted set | a tenant's jobs that wait in this queue; score: from when they may run |
| `qs:waiting:PASS_KEY` | sorted set | written by earlier versions only: jobs with this pass key that wait for their first attempt |
| `qs:retire` | sorted set | records; score: when they may be removed |
| `qs:counts` | hash | event counts, by name |
| `qs:job-times` | hash | the average time that a worker took for a job, in ms, by queue |
| `qs:fence` | number | the latest fence (a claim's unique number) |
| `qs:sequence` | number | the number of the latest record, counted in the order of creation |
| `qs:queues` | set | every queue that ever had a job |
| `qs:workers` | sorted set | workers; score: until when they count as alive |
| `qs:worker-descriptions` | hash | the announced description of each worker |
| `qs:idempotency` | sorted set | keys `…:idempotency:DIGEST`; score: when to remove them |
| `qs:erase` | number | since when the append-only file has contained deleted text |
| `qs:erase-last` | number | the time of the latest deletion |
| `qs:initialization_by_digest:DIGEST` | hash | an initialization that jobs name (`initializations.py`) |
| `qs:initialization_set_aside:DIGEST` | hash | an initialization that is being forgotten |
| `qs:initialization_names` | hash | the digest that each name points at, by `BASE/NAME` |
| `qs:keys` | hash | API keys, by id |
| `qs:key_uses` | hash | when each key was last used, by id; under `since`, since when this is recorded |
| `qs:tenants` | hash | own limits and share of tenants, by tenant (`tenants.py`) |
| `qs:audit` | stream | changes by command lines, and changes of the whole deployment by its processes (`audit.py`) |
| `qs:restored_stream` | stream | the stream that a restore is merging |
| `qs:id-key` | string | the secret key of adapter ids |
| `qs:celery:…` | Celery's own | wake-ups |

Keys of a tenant, all under `qs:TENANT:`:

| key | type | holds |
|---|---|---|
| `…:adapter:ID` | hash | the record of one adapter (`record.py`) |
| `…:adapters` | sorted set | its adapters; score: number in the order of creation |
| `…:unfinished` | set | its unfinished jobs |
| `…:weighed` | sorted set | adapters whose weights `…:usage` includes; score: expiry (infinity while pinned or being adapted) |
| `…:usage` | hash | bytes and example_bytes of its records; adaptations and predictions so far |
| `…:requests` | hash | the latest minute with requests, and their number |
| `…:requests:MINUTE` | number | written by earlier versions only: requests of one minute |
| `…:aliases-of:ID` | set | the aliases that point at an adapter |
| `…:alias-targets` | hash | where each alias points, and since when |
| `…:alias-history:ALIAS` | list | where an alias pointed before, the latest first: `ADAPTER MOVED_AT` |
| `…:alias-names` | sorted set | the aliases, sorted by name |
| `…:audit` | stream | changes that concern the tenant (`audit.py`) |
| `…:idempotency:DIGEST` | string | the request and the adapter of an Idempotency-Key (`idempotency.py`) |
| `…:weights:ID:FENCE` | string | the weights that one claim stored; on the server of the cache |

No tenant's name has an underscore (`api_keys.check_tenant`). So a key of the deployment that continues after a second colon has an
underscore before it, or what is before it is a reserved name. The one exception is `qs:waiting:PASS_KEY`: a pass key has slashes,
and no key of a tenant has one before its third colon.

Only weights have a TTL, because a server with the policy `volatile-lru` evicts any key that has one.

Times are in milliseconds. The Lua scripts build some of these names themselves. The end of each job is published on the channel
`messages.DONE_CHANNEL`.
"""

from typing import Any

PENDING = "qs:pending"
RUNNING = "qs:running"
DEAD = "qs:dead"
RETIRE = "qs:retire"
COUNTS = "qs:counts"
JOB_TIMES = "qs:job-times"
FENCE = "qs:fence"
SEQUENCE = "qs:sequence"
QUEUES = "qs:queues"
WORKERS, WORKER_DESCRIPTIONS = "qs:workers", "qs:worker-descriptions"
ERASE, ERASE_LAST = "qs:erase", "qs:erase-last"
API_KEYS, KEY_USES = "qs:keys", "qs:key_uses"
TENANTS = "qs:tenants"
AUDIT, RESTORED_STREAM = "qs:audit", "qs:restored_stream"
INITIALIZATION_NAMES = "qs:initialization_names"
ID_KEY = "qs:id-key"
IDEMPOTENCY = "qs:idempotency"
CELERY_PREFIX = "qs:celery:"


def wake_ups(queue: str, priority: int) -> str:
    """Return the list with the wake-ups of a queue that have this priority, as kombu names it."""
    return f"{CELERY_PREFIX}{queue}\x06\x16{priority}" if priority else f"{CELERY_PREFIX}{queue}"


def initialization(digest: str) -> str:
    return f"qs:initialization_by_digest:{digest}"  # no tenant's name has an underscore


def initialization_set_aside(digest: str) -> str:
    return f"qs:initialization_set_aside:{digest}"


def record(tenant: str, adapter_id: str) -> str:
    return f"qs:{tenant}:adapter:{adapter_id}"


def adapters(tenant: str) -> str:
    return f"qs:{tenant}:adapters"


def unfinished(tenant: str) -> str:
    return f"qs:{tenant}:unfinished"


def usage(tenant: str) -> str:
    return f"qs:{tenant}:usage"


def idempotency(tenant: str, digest: str) -> str:
    return f"qs:{tenant}:idempotency:{digest}"


def weights(tenant: str, adapter_id: str, fence: int) -> str:
    return f"qs:{tenant}:weights:{adapter_id}:{fence}"


def aliases_of(tenant: str, adapter_id: str) -> str:
    return f"qs:{tenant}:aliases-of:{adapter_id}"


def alias_targets(tenant: str) -> str:
    return f"qs:{tenant}:alias-targets"


def alias_history(tenant: str, alias: str) -> str:
    return f"qs:{tenant}:alias-history:{alias}"


def alias_names(tenant: str) -> str:
    return f"qs:{tenant}:alias-names"


def tenant_audit(tenant: str) -> str:
    return f"qs:{tenant}:audit"


def job_keys(tenant: str, adapter_id: str) -> list[str]:
    """Return the keys that every Lua script for one job takes as its first keys, in this order."""
    return [record(tenant, adapter_id), PENDING, RUNNING, COUNTS, DEAD]


def alias_keys(tenant: str, adapter_id: str) -> list[str]:
    """Return the keys that a Lua script needs to change the aliases of an adapter."""
    return [aliases_of(tenant, adapter_id), alias_targets(tenant), alias_names(tenant)]


def member(tenant: str, adapter_id: str) -> str:
    """Return `tenant/adapter_id`, which names a job in Redis sets and messages."""
    return f"{tenant}/{adapter_id}"


def split_member(member: bytes) -> tuple[str, str]:
    """Split `tenant/adapter_id`, a result of `member`, into (tenant, adapter id)."""
    tenant, adapter_id = text(member).split("/", 1)
    return tenant, adapter_id


def text(value: Any) -> str:
    """Return a value from Redis as text."""
    return value.decode() if isinstance(value, bytes) else str(value)
