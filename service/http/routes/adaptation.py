"""`POST /adapt` and `POST /adapters/{adapter_id}/examples`: from examples to an adapter."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool

from service.adapting.checked_request import checked_adapt, checked_examples
from service.adapting.intake import HowToAnswer, accepted
from service.errors import KeyUsedOtherwise, UnknownAdapter
from service.http.auth import needs
from service.http.openapi import OF_A_BODY, OF_ANY_ROUTE, TO_THE_ADAPTER, Responses, problems
from service.http.prefer import prefer_wait
from service.http.schemas import AdaptAnswer, AdapterId, AdaptRequest, DryRunAnswer, ExamplesRequest, concrete
from service.http.views import require


async def _place(how: Annotated[HowToAnswer, Depends()]) -> AsyncIterator[None]:
    """Of a request that waits, among those that its tenant may keep open; before anything is put on record."""
    if prefer_wait(how.prefer, how.state.settings.max_wait_seconds) and not how.dry_run:
        with how.state.streams.one(how.tenant):
            yield
    else:
        yield


_LOCATION = {"Location": {"description": "of the adapter", "schema": {"type": "string"}}}
_ACCEPTED: Responses = {
    200: {
        "model": AdaptAnswer | DryRunAnswer,
        "description": "The adapter is ready; or, of a dry run, what would be",
        "headers": _LOCATION,
        "links": TO_THE_ADAPTER,
    },
    202: {
        "model": AdaptAnswer,
        "description": "The job is on record, and will end as ready or failed",
        "headers": _LOCATION,
        "links": TO_THE_ADAPTER,
    },
}


def routes(example: Any) -> APIRouter:
    """The routes for bodies with examples of this type."""
    adapt_request, examples_request = concrete(AdaptRequest, example), concrete(ExamplesRequest, example)
    router = APIRouter(tags=["adapters"], dependencies=[Depends(needs("adapt")), Depends(_place)])
    responses = {**_ACCEPTED, **problems(*OF_ANY_ROUTE, *OF_A_BODY, KeyUsedOtherwise, UnknownAdapter)}

    @router.post("/adapt", status_code=202, response_model=None, responses=responses)
    async def adapt(
        request: adapt_request,  # type: ignore[valid-type]
        how: Annotated[HowToAnswer, Depends()],
    ) -> AdaptAnswer | DryRunAnswer:
        """Learn a task from labelled examples. The same request gives the same adapter: a retry is free. 404: it was deleted while
        the request waited for it."""
        return await accepted(checked_adapt(request, how.state), how)

    @router.post("/adapters/{adapter_id}/examples", status_code=202, response_model=None, responses=responses)
    async def add_examples(
        adapter_id: AdapterId,
        request: examples_request,  # type: ignore[valid-type]
        how: Annotated[HowToAnswer, Depends()],
    ) -> AdaptAnswer | DryRunAnswer:
        """A new adapter from this one's examples and further ones, with its initialization and options unless others are given.
        This one stays as it is."""
        parent = require(adapter_id, await run_in_threadpool(how.state.records.recipe, how.tenant, adapter_id))
        return await accepted(checked_examples(request, adapter_id, parent, how.state), how)

    return router
