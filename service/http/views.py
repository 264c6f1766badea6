"""Look up the records of adapters and convert them to response bodies."""

from typing import TypeVar

from service.errors import UnknownAdapter
from service.http.schemas import AdapterView
from service.http.state import ServiceState
from worker.ledger.messages import Status
from worker.ledger.record import Record

T = TypeVar("T")


def get_record(adapter_id: str, state: ServiceState, tenant: str) -> Record:
    """Return an adapter's record. Raises UnknownAdapter if the tenant has no such adapter."""
    return require(adapter_id, state.records.get(tenant, adapter_id))


def require(adapter_id: str, found: T | None) -> T:
    """Return `found`. Raises UnknownAdapter if it is None."""
    if found is None:
        raise UnknownAdapter(adapter_id)
    return found


def status_of(record: Record, state: ServiceState) -> Status:
    """Return the record's status, or `evicted` if it is `ready` but the cache has lost the weights."""
    if record.status == "ready" and not state.store.has(record.tenant, record.adapter_id, record.fence):
        return "evicted"
    return record.status


def view(record: Record, state: ServiceState) -> AdapterView:
    steps = len(record.support_loss) if record.status in ("ready", "expired") else None
    deployed = state.deployed_for(record)
    return AdapterView(
        adapter_id=record.adapter_id,
        kind=record.summary.kind,
        base_model=None if deployed is None else deployed.base.spec.model,
        status=status_of(record, state),
        name=record.name,
        tags=list(record.tags),
        parent=record.parent,
        initialization=record.summary.initialization,
        initialization_digest=record.summary.initialization_digest,
        labels=list(record.summary.labels),
        examples=record.summary.examples,
        steps=steps if record.summary.steps is None else record.summary.steps,
        seed=record.summary.seed,
        label_words=record.summary.label_words,
        label_words_used=record.label_words_used if record.summary.label_words == "auto" else record.summary.label_words,
        label_words_gain=record.label_words_gain,
        precision=record.summary.precision,
        attempt=record.attempt,
        support_loss=list(record.support_loss),
        truncated=list(record.truncated),
        timings=record.timings,
        digest=record.digest,
        error=record.error,
        last_error=record.last_error,
        pinned=record.pinned,
        recovery_ms=record.recovery_ms,
        created_at=record.created_at / 1000,
        expires_at=None if record.pinned else record.expires_at / 1000,
    )
