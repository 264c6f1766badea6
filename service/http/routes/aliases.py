"""`GET /aliases`, and `GET`, `PUT` and `DELETE /aliases/{alias}`: names that point at adapters."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from service.errors import AliasMoved, AliasWithoutHistory, InvalidRequest, UnknownAdapter, UnknownAlias
from service.field_checks import check_alias
from service.http.auth import needs
from service.http.openapi import ALIAS_LINKS, BODY_ERRORS, ROUTE_ERRORS, problems
from service.http.route import TenantRoute
from service.http.schemas import AliasDetail, AliasEntry, AliasMove, AliasName, AliasPage, AliasTarget, AliasView
from service.http.state import State, Tenant
from worker.ledger.aliases import Alias

router = APIRouter(route_class=TenantRoute, tags=["aliases"])
_CURSOR = Query(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="`next_cursor` of the previous page")


@router.get("/aliases", dependencies=[Depends(needs("read"))], responses=problems(*ROUTE_ERRORS, InvalidRequest))
def list_aliases(
    state: State,
    tenant: Tenant,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, _CURSOR] = None,
) -> AliasPage:
    """List aliases, sorted by name."""
    aliases, next_cursor = state.aliases.page(tenant, limit, cursor)
    return AliasPage(aliases=[_view(alias) for alias in aliases], next_cursor=next_cursor)


@router.get(
    "/aliases/{alias}",
    dependencies=[Depends(needs("read"))],
    responses=problems(*ROUTE_ERRORS, InvalidRequest, UnknownAlias),
)
def get_alias(alias: AliasName, state: State, tenant: Tenant) -> AliasDetail:
    """Return an alias, the adapter that it points at, and those that it pointed at before."""
    found = state.aliases.get(tenant, alias)
    if found is None:
        raise UnknownAlias(alias)
    history = [
        AliasEntry(adapter_id=entry.adapter_id, since=entry.updated_at / 1000) for entry in state.aliases.history(tenant, alias)
    ]
    return AliasDetail(**_view(found).model_dump(), history=history)


@router.put(
    "/aliases/{alias}",
    dependencies=[Depends(needs("adapt"))],
    responses={200: {"links": ALIAS_LINKS}, **problems(*ROUTE_ERRORS, *BODY_ERRORS, UnknownAdapter, AliasMoved)},
)
def set_alias(alias: AliasName, target: AliasTarget, state: State, tenant: Tenant) -> AliasMove:
    """Point an alias at an adapter. The alias is created if it does not exist.

    The change is atomic: each prediction uses either the previous adapter or the new one. With `expected`, the alias is changed
    only if it points at that adapter now, otherwise the answer is 409. So if two clients change the alias at the same time, one of
    them gets the 409. An adapter can expire although an alias points at it; pin the adapter to prevent this.
    """
    check_alias(alias)
    expected = target.expected if "expected" in target.model_fields_set else "*"
    moved = state.aliases.point(tenant, alias, target.adapter_id, expected, state.tenants.limits_of(tenant)["MAX_ALIASES"])
    if moved.verdict == "unknown":
        raise UnknownAdapter(target.adapter_id)
    if moved.verdict == "moved":
        message = f"alias {alias}: expected it to point at {expected or 'no adapter'}, got {moved.previous or 'no adapter'}"
        raise AliasMoved(message, alias_points_at=moved.previous)
    return AliasMove(alias=alias, adapter_id=target.adapter_id, previous=moved.previous)


@router.post(
    "/aliases/{alias}/rollback",
    dependencies=[Depends(needs("adapt"))],
    responses={200: {"links": ALIAS_LINKS}, **problems(*ROUTE_ERRORS, InvalidRequest, UnknownAlias, AliasWithoutHistory)},
)
def roll_back_alias(alias: AliasName, state: State, tenant: Tenant) -> AliasMove:
    """Point an alias at the adapter that it pointed at before the current one.

    Adapters that were deleted, failed or have expired are passed over. Calling this again goes further back. The answer is 409 if
    no earlier adapter is usable.
    """
    done = state.aliases.roll_back(tenant, alias)
    if done.verdict == "unknown":
        raise UnknownAlias(alias)
    if done.verdict == "none":
        raise AliasWithoutHistory(f"alias {alias}: no adapter that it pointed at before is usable")
    return AliasMove(alias=alias, adapter_id=done.adapter_id, previous=done.previous)


@router.delete(
    "/aliases/{alias}",
    status_code=204,
    dependencies=[Depends(needs("adapt"))],
    responses=problems(*ROUTE_ERRORS, InvalidRequest, UnknownAlias),
)
def delete_alias(alias: AliasName, state: State, tenant: Tenant) -> None:
    """Delete an alias; its adapter stays."""
    if not state.aliases.remove(tenant, alias):
        raise UnknownAlias(alias)


def _view(alias: Alias) -> AliasView:
    return AliasView(alias=alias.alias, adapter_id=alias.adapter_id, updated_at=alias.updated_at / 1000)
