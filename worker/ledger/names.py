"""The names of all keys in Redis, in one place: what is stored where. Torch-free.

Of the deployment:

| key | type | holds |
|---|---|---|
| `qs:pending` | sorted set | unfinished jobs, by when the reaper should look at them |
| `qs:running` | sorted set | claimed jobs, by the end of their lease |
| `qs:dead` | sorted set | jobs that used up their attempts, by when |
| `qs:waiting:KIN` | sorted set | jobs of one pass key that wait for their first attempt, by since when |
| `qs:retire` | sorted set | records, by when they may be removed |
| `qs:counts` | hash | what has happened so far, by name |
| `qs:fence` | number | the latest fence |
| `qs:sequence` | number | numbers the records in the order of their creation |
| `qs:queues` | set | every queue that ever had a job |
| `qs:workers`, `qs:worker-descriptions` | sorted set, hash | workers, by the end of their announcement; what each said |
| `qs:erase`, `qs:erase-last` | number | since when the append-only file holds deleted text; the latest deletion |
| `qs:keys` | hash | API keys, by id |
| `qs:id-key` | string | the secret that adapter ids are made with |
| `qs:celery:…` | Celery's own | wake-ups |

Of a tenant, all under `qs:TENANT:`:

| key | type | holds |
|---|---|---|
| `…:adapter:ID` | hash | the record of one adapter (`record.py`) |
| `…:adapters` | sorted set | its adapters, in the order of their creation |
| `…:unfinished` | set | its unfinished jobs |
| `…:weighed` | sorted set | adapters whose weights are counted, by when they expire (infinity while pinned or being adapted) |
| `…:usage` | hash | sums over its records: bytes, example_bytes, adaptations, predictions |
| `…:requests:MINUTE` | number | requests of one minute |
| `…:aliases-of:ID` | set | the aliases that point at an adapter |
| `…:alias-targets`, `…:alias-names` | hash, sorted set | where each alias points and since when; the aliases in order |
| `…:idempotency:DIGEST` | string | the job of an Idempotency-Key (`service.adapting.idempotency`) |
| `…:weights:ID:FENCE` | string | the weights that one claim stored, on the cache's server |

The Lua scripts make some of these names themselves. The end of each job is published on the channel `messages.DONE_CHANNEL`.
"""

from typing import Any

PENDING = "qs:pending"
RUNNING = "qs:running"
DEAD = "qs:dead"
RETIRE = "qs:retire"
COUNTS = "qs:counts"
FENCE = "qs:fence"
SEQUENCE = "qs:sequence"
QUEUES = "qs:queues"
WORKERS, WORKER_DESCRIPTIONS = "qs:workers", "qs:worker-descriptions"
ERASE, ERASE_LAST = "qs:erase", "qs:erase-last"
API_KEYS = "qs:keys"
ID_KEY = "qs:id-key"
CELERY_PREFIX = "qs:celery:"


def record(tenant: str, adapter_id: str) -> str:
    return f"qs:{tenant}:adapter:{adapter_id}"


def adapters(tenant: str) -> str:
    return f"qs:{tenant}:adapters"


def unfinished(tenant: str) -> str:
    return f"qs:{tenant}:unfinished"


def usage(tenant: str) -> str:
    return f"qs:{tenant}:usage"


def waiting(pass_key: str) -> str:
    return f"qs:waiting:{pass_key}"


def weights(tenant: str, adapter_id: str, fence: int) -> str:
    return f"qs:{tenant}:weights:{adapter_id}:{fence}"


def aliases_of(tenant: str, adapter_id: str) -> str:
    return f"qs:{tenant}:aliases-of:{adapter_id}"


def alias_targets(tenant: str) -> str:
    return f"qs:{tenant}:alias-targets"


def alias_names(tenant: str) -> str:
    return f"qs:{tenant}:alias-names"


def job_keys(tenant: str, adapter_id: str) -> list[str]:
    """Return the keys that every script of one job takes first."""
    return [record(tenant, adapter_id), PENDING, RUNNING, COUNTS, DEAD]


def alias_keys(tenant: str, adapter_id: str) -> list[str]:
    """Return the keys of a script that changes the aliases of an adapter."""
    return [aliases_of(tenant, adapter_id), alias_targets(tenant), alias_names(tenant)]


def member(tenant: str, adapter_id: str) -> str:
    """Return how a job is called in sets and messages."""
    return f"{tenant}/{adapter_id}"


def split_member(member: bytes) -> tuple[str, str]:
    """Return the tenant and adapter id of a member."""
    tenant, adapter_id = text(member).split("/", 1)
    return tenant, adapter_id


def text(value: Any) -> str:
    """Decode a value as Redis returned it."""
    return value.decode() if isinstance(value, bytes) else str(value)
