"""`GET /audit`: who changed what in a tenant's data."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from service.errors import InvalidRequest
from service.http.audit_schemas import ActorView, AuditEntry, AuditPage
from service.http.auth import needs
from service.http.openapi import ROUTE_ERRORS, problems
from service.http.route import TenantRoute
from service.http.state import State, Tenant
from worker.ledger.audit import Action, Entry

router = APIRouter(route_class=TenantRoute, tags=["audit"])
_CURSOR = Query(pattern=r"^[1-9][0-9]{0,14}-[0-9]{1,15}$", description="`next_cursor` of the previous page")


@router.get("/audit", dependencies=[Depends(needs("admin"))], responses=problems(*ROUTE_ERRORS, InvalidRequest))
def list_changes(
    state: State,
    tenant: Tenant,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, _CURSOR] = None,
    action: Annotated[Action | None, Query(description="only changes of this kind")] = None,
) -> AuditPage:
    """List changes of the tenant's keys, adapters, aliases and limits, newest first.

    With `action`, a page may have fewer than `limit` entries, or none, although more pages follow. The list ends only when
    `next_cursor` is null. At least the latest 10,000 changes of a tenant are kept.
    """
    entries, next_cursor = state.audit.page(tenant, limit, cursor, action)
    return AuditPage(entries=[_view(entry) for entry in entries], next_cursor=next_cursor)


def _view(entry: Entry) -> AuditEntry:
    actor = ActorView(kind=entry.actor.kind, id=entry.actor.identity or None, address=entry.actor.address or None)
    return AuditEntry(
        id=entry.identity,
        time=entry.time / 1000,
        action=entry.action,
        subject=entry.subject,
        actor=actor,
        request_id=entry.request or None,
        details=dict(entry.details),
    )
