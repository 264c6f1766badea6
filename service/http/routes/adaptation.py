"""`POST /adapt` and `POST /adapters/{adapter_id}/examples`: from labelled examples to an adapter."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool

from service.adapting.intake import Handling, Order, initialization, steps_of, taken
from service.errors import KeyUsedOtherwise, UnknownAdapter
from service.http.auth import needs
from service.http.limits import check_adapt, check_notes, check_support, check_ttl, prefer_wait
from service.http.openapi import OF_A_BODY, OF_ANY_ROUTE, TO_THE_ADAPTER, Responses, problems
from service.http.schemas import AdaptAnswer, AdapterId, AdaptRequest, DryRunAnswer, Example, ExamplesRequest, Options
from service.http.state import ServiceState
from service.http.views import there
from worker.ledger.messages import JobRecipe
from worker.ledger.notes import Notes


async def _place(how: Annotated[Handling, Depends()]) -> AsyncIterator[None]:
    """Of a request that waits, among those that its tenant may keep open; before anything is put on record."""
    if prefer_wait(how.prefer, how.state.settings.max_wait_seconds) and not how.dry_run:
        with how.state.streams.one(how.tenant):
            yield
    else:
        yield


router = APIRouter(tags=["adapters"], dependencies=[Depends(needs("adapt")), Depends(_place)])
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


@router.post(
    "/adapt",
    status_code=202,
    response_model=None,
    responses={**_ACCEPTED, **problems(*OF_ANY_ROUTE, *OF_A_BODY, KeyUsedOtherwise, UnknownAdapter)},
)
async def adapt(request: AdaptRequest, how: Annotated[Handling, Depends()]) -> AdaptAnswer | DryRunAnswer:
    """Learn a task from labelled examples. The same request gives the same adapter: a retry is free. 404: it was deleted while
    the request waited for it."""
    check_adapt(request, how.state.settings)
    init = initialization(request.initialization, how.state)
    notes = Notes(request.name, None if request.tags is None else tuple(request.tags))
    order = Order(_pairs(request.support), (), init, request.options, request.ttl_seconds, notes, "/adapt", request)
    return await taken(order, how)


@router.post(
    "/adapters/{adapter_id}/examples",
    status_code=202,
    response_model=None,
    responses={**_ACCEPTED, **problems(*OF_ANY_ROUTE, *OF_A_BODY, KeyUsedOtherwise, UnknownAdapter)},
)
async def add_examples(
    adapter_id: AdapterId, request: ExamplesRequest, how: Annotated[Handling, Depends()]
) -> AdaptAnswer | DryRunAnswer:
    """A new adapter from this one's examples and further ones, with its initialization and options unless others are given. This
    one stays as it is."""
    parent = there(adapter_id, await run_in_threadpool(how.state.records.recipe, how.tenant, adapter_id))
    init = initialization(parent.initialization, how.state)
    options = _options(parent, request.options, how.state)
    check_support(request.support, options, how.state.settings, parent.support)
    check_notes(request.name, request.tags)
    check_ttl(request.ttl_seconds, how.state.settings)
    notes = Notes(request.name, None if request.tags is None else tuple(request.tags), parent=adapter_id)
    before, path = parent.support, f"/adapters/{adapter_id}/examples"
    return await taken(Order(_pairs(request.support), before, init, options, request.ttl_seconds, notes, path, request), how)


def _pairs(examples: list[Example]) -> list[tuple[str, str]]:
    return [(example.input, example.label) for example in examples]


def _options(parent: JobRecipe, given: Options, state: ServiceState) -> Options:
    """The parent's, but for those that are given. A number of steps that its initialization chose for its examples is chosen anew
    for more of them."""
    own = Options(seed=parent.seed, label_words=parent.label_words)
    if parent.steps != steps_of(parent.support, own, initialization(parent.initialization, state)):
        own = own.model_copy(update={"steps": parent.steps})
    return own.model_copy(update={name: getattr(given, name) for name in given.model_fields_set})
