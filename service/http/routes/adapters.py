"""`/adapters`, `/adapters/{adapter_id}` and its `/pin`: list, show, change, delete and pin adapters."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from service.errors import AdapterInUse, AdapterNotReady, InvalidRequest, UnknownAdapter
from service.field_checks import check_notes
from service.http.auth import needs
from service.http.openapi import BODY_ERRORS, ROUTE_ERRORS, problems
from service.http.route import TenantRoute
from service.http.schemas import AdapterChanges, AdapterId, AdapterPage, AdapterView
from service.http.state import ServiceState, State, Tenant
from service.http.views import get_record, require, status_of, view
from worker.errors import AdapterAliased, AdapterExpired
from worker.ledger.messages import Status
from worker.ledger.notes import Notes
from worker.ledger.record import Record

router = APIRouter(route_class=TenantRoute, tags=["adapters"])


@router.get("/adapters", dependencies=[Depends(needs("read"))], responses=problems(*ROUTE_ERRORS, InvalidRequest))
def list_adapters(
    state: State,
    tenant: Tenant,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(pattern=r"^[0-9]{1,15}$", description="`next_cursor` of the previous page")] = None,
    status: Annotated[Status | None, Query(description="only adapters with this status")] = None,
    tag: Annotated[str | None, Query(max_length=64, description="only adapters that have this tag")] = None,
    name: Annotated[str | None, Query(max_length=100, description="only adapters with exactly this name")] = None,
) -> AdapterPage:
    """List adapters, newest first.

    With filters, a page may have fewer than `limit` adapters, or none, although more pages follow. The list ends only when
    `next_cursor` is null.
    """
    unfiltered = (status, tag, name) == (None, None, None)
    matches = None if unfiltered else partial(_matches, status=status, tag=tag, name=name, state=state)
    records, next_cursor = state.records.page(tenant, limit, None if cursor is None else int(cursor), matches)
    views = [view(record, state) for record in records]
    return AdapterPage(adapters=views, next_cursor=None if next_cursor is None else str(next_cursor))


def _matches(record: Record, *, status: Status | None, tag: str | None, name: str | None, state: ServiceState) -> bool:
    notes_match = (tag is None or tag in record.tags) and (name is None or name == record.name)
    return notes_match and (status is None or status == status_of(record, state))


@router.get(
    "/adapters/{adapter_id}",
    dependencies=[Depends(needs("read"))],
    responses=problems(*ROUTE_ERRORS, InvalidRequest, UnknownAdapter),
)
def get_adapter(adapter_id: AdapterId, state: State, tenant: Tenant) -> AdapterView:
    """Return one adapter, including its status, support loss before each step, timings and digest."""
    return view(get_record(adapter_id, state, tenant), state)


@router.patch(
    "/adapters/{adapter_id}",
    dependencies=[Depends(needs("adapt"))],
    responses=problems(*ROUTE_ERRORS, *BODY_ERRORS, UnknownAdapter),
)
def change_adapter(adapter_id: AdapterId, changes: AdapterChanges, state: State, tenant: Tenant) -> AdapterView:
    """Change an adapter's name and tags; nothing else can be changed."""
    check_notes(changes.name, changes.tags)
    present = changes.model_fields_set
    notes = Notes((changes.name or "") if "name" in present else None, tuple(changes.tags) if "tags" in present else None)
    if not state.records.annotate(tenant, adapter_id, notes):
        raise UnknownAdapter(adapter_id)
    return view(get_record(adapter_id, state, tenant), state)


@router.delete(
    "/adapters/{adapter_id}",
    status_code=204,
    dependencies=[Depends(needs("adapt"))],
    responses=problems(*ROUTE_ERRORS, InvalidRequest, UnknownAdapter, AdapterInUse),
)
def delete_adapter(adapter_id: AdapterId, state: State, tenant: Tenant) -> None:
    """Delete an adapter with its weights, record and examples, and cancel its job if it is unfinished.

    An adapter cannot be deleted while aliases point at it. The same `POST /adapt` creates the adapter again.
    """
    record = get_record(adapter_id, state, tenant)
    try:
        if aliases := state.aliases.of(tenant, adapter_id):
            raise AdapterAliased(aliases)
        # The weights are deleted first: if the cache cannot be reached, the record still locates them, and a retry can delete them.
        state.store.remove(tenant, adapter_id, record.fence)
        fence = state.records.delete(tenant, adapter_id)
    except AdapterAliased as error:
        raise AdapterInUse(f"adapter {adapter_id}: {error}", aliases=error.aliases, aliases_total=error.number) from error
    if fence is not None:
        state.store.remove(tenant, adapter_id, fence)
    if record.digest is not None and (deployed := state.deployed_for(record)) is not None:
        deployed.predictor.forget(tenant, record.digest)


@router.put(
    "/adapters/{adapter_id}/pin",
    status_code=204,
    dependencies=[Depends(needs("adapt"))],
    responses=problems(*ROUTE_ERRORS, *BODY_ERRORS, UnknownAdapter, AdapterNotReady),
)
def pin_adapter(adapter_id: AdapterId, state: State, tenant: Tenant) -> None:
    """Pin an adapter: it does not expire, and its weights are not evicted.

    An expired adapter cannot be pinned: adapt again.
    """
    _pin(adapter_id, state, tenant, pinned=True)


@router.delete(
    "/adapters/{adapter_id}/pin",
    status_code=204,
    dependencies=[Depends(needs("adapt"))],
    responses=problems(*ROUTE_ERRORS, InvalidRequest, UnknownAdapter, AdapterNotReady),
)
def unpin_adapter(adapter_id: AdapterId, state: State, tenant: Tenant) -> None:
    """Unpin an adapter: it can expire again, and its time to live starts now."""
    _pin(adapter_id, state, tenant, pinned=False)


def _pin(adapter_id: str, state: ServiceState, tenant: str, *, pinned: bool) -> None:
    try:
        ttl_ms = require(adapter_id, state.records.pin(tenant, adapter_id, pinned))
    except AdapterExpired as error:
        raise AdapterNotReady(f"adapter {adapter_id} is expired: adapt again", adapter_status="expired") from error
    record = get_record(adapter_id, state, tenant)
    state.store.keep(tenant, adapter_id, record.fence, None if pinned else ttl_ms)
