"""The record of an adapter: its fields in Redis, and how to parse them.

A record is the Redis hash `qs:TENANT:adapter:ID`. It has the fields of `Record`, and these:

| field | holds |
|---|---|
| `recipe` | the job recipe as JSON, with the text of every example |
| `initialization_digest` | the digest that the recipe names, so that a claim need not read the recipe |
| `kin` | the pass key: jobs with the same pass key may share a pass |
| `cost` | how far the job moves its tenant's turn: its tokens times its inner steps, at least 1 |
| `queued_at`, `announced_at` | when the job was queued; when its wake-up was last repeated |
| `lease_until`, `heard_at`, `lost_at` | end of the lease; last heartbeat; last sign of life of a lost worker |
| `worker`, `request` | name of the worker that holds the job; id of the request that asked for it |
| `bytes`, `example_bytes` | size of the weights and of the recipe, as counted in the tenant's usage |

The Lua scripts write these fields. Those of `SEALED_FIELDS` are encrypted if there is a key (`encryption.py`). A record has no TTL,
so Redis's `volatile-*` policies never evict it. `qs:retire` says when it may be removed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from worker.ledger import names
from worker.ledger.encryption import Cipher, field_name
from worker.ledger.messages import RecipeSummary, Status


class Record(BaseModel):
    """The stored state of one adapter, without its examples (for these, see `Records.recipe`).

    Times are in ms. `status` is never `evicted` in a record, because only the cache shows whether the weights still exist.
    """

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
    label_words_used: bool | None = None
    label_words_gain: float | None = None
    name: str | None = None
    tags: tuple[str, ...] = ()
    parent: str | None = None


FIELDS = [name for name in Record.model_fields if name not in ("tenant", "adapter_id")]
"""The fields of the Redis hash from which a `Record` is read."""
SEALED_FIELDS = ("recipe", "summary", "name", "tags", "error")
"""The fields that have texts of a request, such as examples and labels, or may quote them."""


@dataclass(frozen=True)
class JobState:
    """The progress of a job: the few fields of its record that change while it runs."""

    status: Status
    attempt: int
    fence: int
    support_loss: tuple[float, ...]


JOB_STATE_FIELDS = ["status", "attempt", "fence", "support_loss"]


def stored_fields(record_key: str, values: Sequence[bytes | None], cipher: Cipher) -> dict[str, str]:
    """Return {field: text} for the Redis values of `FIELDS`, without the fields that are not stored.

    Raises EncryptionKeyMissing and SealBroken if `cipher` cannot open a value.
    """
    stored = {name: value for name, value in zip(FIELDS, values, strict=True) if value is not None}
    return {name: cipher.open(field_name(record_key, name), value).decode() for name, value in stored.items()}


def sealed_field(tenant: str, adapter_id: str, field: str, value: str, cipher: Cipher) -> bytes:
    """Return the value of a record's field as it is written.

    An empty value, which removes the field, stays empty.
    """
    if field not in SEALED_FIELDS or not value:
        return value.encode()
    return cipher.seal(field_name(names.record(tenant, adapter_id), field), value.encode())


def parse_record(tenant: str, adapter_id: str, stored: Mapping[str, str], now: int) -> Record:
    """Parse the stored fields of an adapter's record.

    `now`: the current time in ms. A ready adapter whose expiry has passed gets the status `expired`.
    """
    fields: dict[str, Any] = dict(stored)
    for key in ("truncated", "support_loss", "timings", "tags"):
        fields[key] = json.loads(fields.get(key) or ("{}" if key == "timings" else "[]"))
    fields["summary"] = json.loads(fields["summary"])
    has_expired = fields.get("pinned") != "1" and int(fields["expires_at"]) <= now
    if fields["status"] == "ready" and has_expired:
        fields["status"] = "expired"
    return Record.model_validate({**fields, "tenant": tenant, "adapter_id": adapter_id})
