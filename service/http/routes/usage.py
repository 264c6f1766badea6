"""`GET /usage`: what a tenant has, has done, and may."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from service.errors import InvalidRequest, MissingScope
from service.http.auth import Access, access
from service.http.deployment_schemas import UsageView
from service.http.openapi import OF_ANY_ROUTE, problems
from service.http.state import State
from worker.errors import InvalidKey
from worker.ledger.api_keys import TENANT_PATTERN, check_tenant

router = APIRouter(tags=["usage"])


@router.get("/usage", responses=problems(*OF_ANY_ROUTE, InvalidRequest))
async def usage(
    state: State,
    granted: Annotated[Access, Depends(access)],
    tenant: Annotated[
        str | None,
        Query(pattern=TENANT_PATTERN, description="another tenant, with the scope `admin`; one's own where absent"),
    ] = None,
) -> UsageView:
    """Adapters, bytes and jobs now, requests of this minute, adaptations and predictions so far, and the limits."""
    whose = granted.tenant if tenant is None else tenant
    if whose != granted.tenant and not granted.allows("admin"):
        raise MissingScope("admin")
    try:
        check_tenant(whose)
    except InvalidKey as error:
        raise InvalidRequest("tenant", error.expected, whose) from error
    return UsageView(tenant=whose, **asdict(await state.meter.used(whose)), limits=state.settings.limits)
