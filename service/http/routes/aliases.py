"""`GET /aliases`, and `GET`, `PUT` and `DELETE /aliases/{alias}`: names that point at adapters."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from service.errors import AliasMoved, InvalidRequest, UnknownAdapter, UnknownAlias
from service.field_checks import check_alias
from service.http.auth import needs
from service.http.openapi import OF_A_BODY, OF_ANY_ROUTE, TO_THE_ALIAS, problems
from service.http.schemas import AliasMove, AliasName, AliasPage, AliasTarget, AliasView
from service.http.state import State, Tenant
from worker.ledger.aliases import Alias

router = APIRouter(tags=["aliases"])
_CURSOR = Query(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="`next_cursor` of the page before")


@router.get("/aliases", responses=problems(*OF_ANY_ROUTE, InvalidRequest))
def list_aliases(
    state: State,
    tenant: Tenant,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, _CURSOR] = None,
) -> AliasPage:
    """Aliases, in the order of their names."""
    found, following = state.aliases.page(tenant, limit, cursor)
    return AliasPage(aliases=[_view(alias) for alias in found], next_cursor=following)


@router.get("/aliases/{alias}", responses=problems(*OF_ANY_ROUTE, InvalidRequest, UnknownAlias))
def get_alias(alias: AliasName, state: State, tenant: Tenant) -> AliasView:
    """Where an alias points."""
    found = state.aliases.get(tenant, alias)
    if found is None:
        raise UnknownAlias(alias)
    return _view(found)


@router.put(
    "/aliases/{alias}",
    dependencies=[Depends(needs("adapt"))],
    responses={200: {"links": TO_THE_ALIAS}, **problems(*OF_ANY_ROUTE, *OF_A_BODY, UnknownAdapter, AliasMoved)},
)
def set_alias(alias: AliasName, target: AliasTarget, state: State, tenant: Tenant) -> AliasMove:
    """Have an alias point at an adapter. In one step: every prediction is of the adapter before or of this one. With `expected`,
    only if it points there now, so that of two who move it at once one is told. The alias does not keep the adapter: pin it."""
    check_alias(alias)
    expected = target.expected if "expected" in target.model_fields_set else "*"
    moved = state.aliases.point(tenant, alias, target.adapter_id, expected, state.settings.max_aliases)
    if moved.verdict == "unknown":
        raise UnknownAdapter(target.adapter_id)
    if moved.verdict == "moved":
        points = f"points at {moved.previous}" if moved.previous else "points nowhere"
        raise AliasMoved(f"alias {alias} {points}, not at {expected or 'nothing'}", alias_points_at=moved.previous)
    return AliasMove(alias=alias, adapter_id=target.adapter_id, previous=moved.previous)


@router.delete(
    "/aliases/{alias}",
    status_code=204,
    dependencies=[Depends(needs("adapt"))],
    responses=problems(*OF_ANY_ROUTE, InvalidRequest, UnknownAlias),
)
def delete_alias(alias: AliasName, state: State, tenant: Tenant) -> None:
    """Take an alias away; the adapter stays."""
    if not state.aliases.remove(tenant, alias):
        raise UnknownAlias(alias)


def _view(alias: Alias) -> AliasView:
    return AliasView(alias=alias.alias, adapter_id=alias.adapter_id, updated_at=alias.updated_at / 1000)
