"""`GET /adapters`, `GET`, `PATCH` and `DELETE /adapters/{adapter_id}`, `PUT` and `DELETE /adapters/{adapter_id}/pin`."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from service.errors import AdapterInUse, AdapterNotReady, InvalidRequest, UnknownAdapter
from service.field_checks import check_notes
from service.http.auth import needs
from service.http.openapi import OF_A_BODY, OF_ANY_ROUTE, problems
from service.http.schemas import AdapterChanges, AdapterId, AdapterPage, AdapterView
from service.http.state import ServiceState, State, Tenant
from service.http.views import known, require, status_of, view
from worker.errors import AdapterAliased, AdapterExpired
from worker.ledger.messages import Status
from worker.ledger.notes import Notes
from worker.ledger.record import Record

router = APIRouter(tags=["adapters"])


@router.get("/adapters", responses=problems(*OF_ANY_ROUTE, InvalidRequest))
def list_adapters(
    state: State,
    tenant: Tenant,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(pattern=r"^[0-9]{1,15}$", description="`next_cursor` of the page before")] = None,
    status: Annotated[Status | None, Query(description="only those")] = None,
    tag: Annotated[str | None, Query(max_length=64, description="only those that have it")] = None,
    name: Annotated[str | None, Query(max_length=100, description="only those of just this name")] = None,
) -> AdapterPage:
    """Adapters, newest first. With filters a page may be short, or empty, before the end: go on while there is a `next_cursor`."""
    wanted = None if (status, tag, name) == (None, None, None) else partial(_wanted, status=status, tag=tag, name=name, state=state)
    found, following = state.records.page(tenant, limit, None if cursor is None else int(cursor), wanted)
    views = [view(record, state) for record in found]
    return AdapterPage(adapters=views, next_cursor=None if following is None else str(following))


def _wanted(record: Record, *, status: Status | None, tag: str | None, name: str | None, state: ServiceState) -> bool:
    noted = (tag is None or tag in record.tags) and (name is None or name == record.name)
    return noted and (status is None or status == status_of(record, state))


@router.get("/adapters/{adapter_id}", responses=problems(*OF_ANY_ROUTE, InvalidRequest, UnknownAdapter))
def get_adapter(adapter_id: AdapterId, state: State, tenant: Tenant) -> AdapterView:
    """Status, support loss by step, timings and digest of one adapter."""
    return view(known(adapter_id, state, tenant), state)


@router.patch(
    "/adapters/{adapter_id}",
    dependencies=[Depends(needs("adapt"))],
    responses=problems(*OF_ANY_ROUTE, *OF_A_BODY, UnknownAdapter),
)
def change_adapter(adapter_id: AdapterId, changes: AdapterChanges, state: State, tenant: Tenant) -> AdapterView:
    """Change an adapter's name and tags; nothing else of it can change."""
    check_notes(changes.name, changes.tags)
    given = changes.model_fields_set
    notes = Notes((changes.name or "") if "name" in given else None, tuple(changes.tags) if "tags" in given else None)
    if not state.records.annotate(tenant, adapter_id, notes):
        raise UnknownAdapter(adapter_id)
    return view(known(adapter_id, state, tenant), state)


@router.delete(
    "/adapters/{adapter_id}",
    status_code=204,
    dependencies=[Depends(needs("adapt"))],
    responses=problems(*OF_ANY_ROUTE, InvalidRequest, UnknownAdapter, AdapterInUse),
)
def delete_adapter(adapter_id: AdapterId, state: State, tenant: Tenant) -> None:
    """Delete weights, record and support text, and cancel what runs. A later POST starts afresh. Refused while aliases point at
    it."""
    record = known(adapter_id, state, tenant)
    try:
        if aliases := state.aliases.of(tenant, adapter_id):
            raise AdapterAliased(aliases)
        # The weights first: should the cache be away, the record still says where they are, and the call can be repeated.
        state.store.remove(tenant, adapter_id, record.fence)
        fence = state.records.delete(tenant, adapter_id)
    except AdapterAliased as error:
        raise AdapterInUse(f"adapter {adapter_id}: {error}", aliases=error.aliases, aliases_total=error.number) from error
    if fence is not None:
        state.store.remove(tenant, adapter_id, fence)
    if record.digest is not None and (deployed := state.of_record(record)) is not None:
        deployed.predictor.forget(tenant, record.digest)


@router.put(
    "/adapters/{adapter_id}/pin",
    status_code=204,
    dependencies=[Depends(needs("adapt"))],
    responses=problems(*OF_ANY_ROUTE, *OF_A_BODY, UnknownAdapter, AdapterNotReady),
)
def pin_adapter(adapter_id: AdapterId, state: State, tenant: Tenant) -> None:
    """Keep an adapter: it does not expire, and its weights are not evicted. One that has expired is not kept: adapt anew."""
    _pin(adapter_id, state, tenant, pinned=True)


@router.delete(
    "/adapters/{adapter_id}/pin",
    status_code=204,
    dependencies=[Depends(needs("adapt"))],
    responses=problems(*OF_ANY_ROUTE, InvalidRequest, UnknownAdapter, AdapterNotReady),
)
def unpin_adapter(adapter_id: AdapterId, state: State, tenant: Tenant) -> None:
    """Let an adapter expire again; its TTL starts anew."""
    _pin(adapter_id, state, tenant, pinned=False)


def _pin(adapter_id: str, state: ServiceState, tenant: str, *, pinned: bool) -> None:
    try:
        ttl_ms = require(adapter_id, state.records.pin(tenant, adapter_id, pinned))
    except AdapterExpired as error:
        raise AdapterNotReady(f"adapter {adapter_id} is expired: adapt anew", adapter_status="expired") from error
    record = known(adapter_id, state, tenant)
    state.store.keep(tenant, adapter_id, record.fence, None if pinned else ttl_ms)
