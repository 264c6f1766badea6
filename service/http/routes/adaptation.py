"""`POST /adapt` and `POST /adapters/{adapter_id}/examples`: create an adapter from examples."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from service.adapting.checked_request import check_adapt_request, check_examples_request
from service.adapting.intake import AdaptContext, accept, adapt_context
from service.errors import AdapterNotReady, IdempotencyKeyReused, UnknownAdapter
from service.http.auth import needs
from service.http.openapi import ADAPTER_LINKS, BODY_ERRORS, ROUTE_ERRORS, Responses, problems
from service.http.prefer import prefer_wait
from service.http.route import TenantRoute
from service.http.schemas import AdaptAnswer, AdapterId, AdaptRequest, DryRunAnswer, ExamplesRequest, concrete
from service.http.tenant_threads import in_thread
from service.http.views import require


async def _acquire_wait(context: Annotated[AdaptContext, Depends(adapt_context)]) -> AsyncIterator[None]:
    """Count a request with `Prefer: wait` as an open stream until it ends. A FastAPI dependency.

    It runs before anything is recorded, and ignores dry runs. Raises LimitReached if the tenant already has MAX_STREAMS streams.
    """
    if prefer_wait(context.prefer, context.state.settings.max_wait_seconds) and not context.dry_run:
        with context.state.streams.acquire(context.tenant):
            yield
    else:
        yield


_LOCATION = {"Location": {"description": "path of the adapter", "schema": {"type": "string"}}}
_ACCEPTED: Responses = {
    200: {
        "model": AdaptAnswer | DryRunAnswer,
        "description": "The adapter is ready; or the answer to a dry run",
        "headers": _LOCATION,
        "links": ADAPTER_LINKS,
    },
    202: {
        "model": AdaptAnswer,
        "description": "The job is recorded and will end as ready or failed",
        "headers": _LOCATION,
        "links": ADAPTER_LINKS,
    },
}


def routes(example: Any) -> APIRouter:
    """Return a router with the routes of this module, whose bodies have examples of the type `example`."""
    adapt_request, examples_request = concrete(AdaptRequest, example), concrete(ExamplesRequest, example)
    router = APIRouter(route_class=TenantRoute, tags=["adapters"], dependencies=[Depends(needs("adapt")), Depends(_acquire_wait)])
    responses = {**_ACCEPTED, **problems(*ROUTE_ERRORS, *BODY_ERRORS, IdempotencyKeyReused, UnknownAdapter)}

    @router.post("/adapt", status_code=202, response_model=None, responses=responses)
    async def adapt(
        request: adapt_request,  # type: ignore[valid-type]
        context: Annotated[AdaptContext, Depends(adapt_context)],
    ) -> AdaptAnswer | DryRunAnswer:
        """Create an adapter that learns a task from labelled examples.

        The same request gives the same adapter, so a retry does not adapt twice. The answer is 404 if the adapter was deleted while
        the request waited for it.
        """
        return await accept(await check_adapt_request(request, context.state, context.tenant), context)

    with_not_ready = {**responses, **problems(AdapterNotReady)}

    @router.post("/adapters/{adapter_id}/examples", status_code=202, response_model=None, responses=with_not_ready)
    async def add_examples(
        adapter_id: AdapterId,
        request: examples_request,  # type: ignore[valid-type]
        context: Annotated[AdaptContext, Depends(adapt_context)],
    ) -> AdaptAnswer | DryRunAnswer:
        """Create a new adapter from the examples of an existing adapter and additional ones.

        The new adapter uses the initialization of the existing adapter, and also its options, except for those that the request
        sets. The existing adapter does not change.
        """
        records, tenant = context.state.records, context.tenant
        record = require(adapter_id, await in_thread(records.get, tenant, adapter_id))
        parent = require(adapter_id, await in_thread(records.recipe, tenant, adapter_id))
        return await accept(await check_examples_request(request, record, parent, context.state, tenant), context)

    return router
