"""`GET /usage`: a tenant's usage and limits."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from service.errors import InvalidRequest, MissingScope
from service.http.auth import Access, access, needs
from service.http.deployment_schemas import UsageView
from service.http.openapi import ROUTE_ERRORS, problems
from service.http.route import TenantRoute
from service.http.state import State
from worker.errors import InvalidKey
from worker.ledger.api_keys import TENANT_PATTERN, check_tenant

router = APIRouter(route_class=TenantRoute, tags=["usage"])


@router.get("/usage", dependencies=[Depends(needs("read"))], responses=problems(*ROUTE_ERRORS, InvalidRequest))
async def usage(
    state: State,
    granted: Annotated[Access, Depends(access)],
    tenant: Annotated[
        str | None,
        Query(
            pattern=TENANT_PATTERN, description="another tenant, which needs the scope `admin`; absent: the tenant of the API key"
        ),
    ] = None,
) -> UsageView:
    """Return a tenant's current usage, its adaptations and predictions so far, and its limits."""
    requested = granted.tenant if tenant is None else tenant
    if requested != granted.tenant and not granted.allows("admin"):
        raise MissingScope("admin")
    try:
        check_tenant(requested)
    except InvalidKey as error:
        raise InvalidRequest("tenant", error.expected, requested) from error
    await state.tenants.refresh(requested)
    return UsageView(
        tenant=requested,
        **asdict(await state.meter.used(requested)),
        streams=state.streams.open(requested),
        bodies_bytes=state.body_budget.held(requested),
        limits=dict(state.tenants.limits_of(requested)),
    )
