"""`POST /adapt`, `GET /adapters`, `GET /adapters/{id}`, `DELETE /adapters/{id}`, `PUT` and `DELETE /adapters/{id}/pin`."""

from collections import Counter
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Response
from starlette.concurrency import run_in_threadpool

from metatrain.artifact import Initialization
from service.auth import needs
from service.errors import InvalidRequest, UnknownAdapter
from service.limits import check_adapt, prefer_wait
from service.schemas import AdaptAnswer, AdapterId, AdapterPage, AdapterView, AdaptRequest
from service.state import ServiceState, State, Tenant
from worker.messages import JobRecipe, Status
from worker.records import Record, adapter_id

router = APIRouter(tags=["adapters"])


@router.post(
    "/adapt",
    status_code=202,
    dependencies=[Depends(needs("adapt"))],
    responses={200: {"model": AdaptAnswer}, 422: {}, 413: {}, 503: {}},
)
async def adapt(
    request: AdaptRequest,
    response: Response,
    state: State,
    tenant: Tenant,
    prefer: Annotated[str | None, Header(description="`wait=SECONDS`: answer as soon as the adapter is ready")] = None,
) -> AdaptAnswer:
    """Learn a task from labelled examples. The same request gives the same adapter: a retry is free."""
    check_adapt(request, state.settings)
    seconds = prefer_wait(prefer, state.settings.max_wait_seconds)
    init = _initialization(request.initialization, state)
    identity, recipe, truncated, status = await run_in_threadpool(_accept, request, init, state, tenant)
    if seconds and status in ("queued", "running"):
        record = await state.jobs.wait(tenant, identity, seconds)
        if record is None:
            raise UnknownAdapter(f"adapter {identity} was deleted while it was being made")
        status = record.status
    response.status_code = 200 if status == "ready" else 202
    response.headers["Location"] = f"/adapters/{identity}"
    return AdaptAnswer(adapter_id=identity, status=status, truncated=_in_request_order(request, recipe, truncated))


def _initialization(name: str, state: ServiceState) -> Initialization:
    init = state.initializations.get(name)
    if init is None:
        raise InvalidRequest("initialization", f"one of {', '.join(sorted(state.initializations))}", name)
    return init


def _accept(
    request: AdaptRequest, init: Initialization, state: ServiceState, tenant: str
) -> tuple[str, JobRecipe, tuple[int, ...], Status]:
    """Resolve the request into a recipe, and its job into a status; blocking."""
    support = tuple(sorted(((example.input, example.label) for example in request.support), key=lambda pair: pair[::-1]))
    recipe = JobRecipe(
        initialization=init.name,
        initialization_digest=init.digest,
        support=support,
        steps=_steps(request, init),
        seed=request.options.seed,
        label_words=request.options.label_words,
        precision=str(state.base.dtype).removeprefix("torch."),
    )
    cut = state.base.encode([text for text, _ in support])[1]
    truncated = tuple(i for i, was_cut in enumerate(cut) if was_cut)
    ttl_ms = 1000 * (request.ttl_seconds or state.settings.default_ttl_seconds)
    identity = adapter_id(state.records.id_key(), tenant, recipe)
    status = state.jobs.start(tenant, identity, recipe, ttl_ms, truncated)
    if status == "ready":
        record = state.records.get(tenant, identity)
        if record is not None and not state.store.keep(tenant, identity, record.fence, None if record.pinned else ttl_ms):
            state.jobs.start_again(record, "evicted")
            status = "queued"
    return identity, recipe, truncated, status


def _steps(request: AdaptRequest, init: Initialization) -> int | None:
    """As asked for, or as the initialization has it for these shots (a label's words are one more); None where it has the support
    set's own accuracy decide."""
    counts = Counter(example.label for example in request.support)
    words = 1 if request.options.label_words else 0
    steps = request.options.steps
    if steps is None:
        size = len(request.support) + words * len(counts), len(counts)
        return None if init.inner.asks(*size) else init.inner.steps_for(*size)
    if steps and max(counts.values()) + words == 1 and not init.inner.teaches_one_shot:
        raise InvalidRequest("options.steps", f"0 for one example of each label with initialization {init.name!r}", steps)
    return steps


def _in_request_order(request: AdaptRequest, recipe: JobRecipe, truncated: tuple[int, ...]) -> list[int]:
    """Positions in the canonical order → positions in the request."""
    cut = {recipe.support[i] for i in truncated}
    return [i for i, example in enumerate(request.support) if (example.input, example.label) in cut]


@router.get("/adapters/{identity}", responses={404: {}})
def get_adapter(identity: AdapterId, state: State, tenant: Tenant) -> AdapterView:
    """Status, support loss by step, timings and digest of one adapter."""
    record = state.records.get(tenant, identity)
    if record is None:
        raise UnknownAdapter(f"no adapter {identity}")
    return _view(record, state)


@router.get("/adapters")
def list_adapters(
    state: State,
    tenant: Tenant,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query(pattern=r"^[0-9]{1,15}$")] = None,
) -> AdapterPage:
    """Adapters, newest first. `cursor` is the `next_cursor` of the page before."""
    records, following = state.records.page(tenant, limit, None if cursor is None else int(cursor))
    return AdapterPage(
        adapters=[_view(record, state) for record in records], next_cursor=None if following is None else str(following)
    )


@router.delete("/adapters/{identity}", status_code=204, dependencies=[Depends(needs("adapt"))], responses={404: {}})
def delete_adapter(identity: AdapterId, state: State, tenant: Tenant) -> None:
    """Delete weights, record and support text, and cancel what runs. A later POST starts afresh."""
    record = state.records.get(tenant, identity)
    if record is None:
        raise UnknownAdapter(f"no adapter {identity}")
    # The weights first: should the cache be away, the record still says where they are, and the call can be repeated.
    state.store.remove(tenant, identity, record.fence)
    fence = state.records.delete(tenant, identity)
    if fence is not None:
        state.store.remove(tenant, identity, fence)
    if record.digest is not None:
        state.predictor.forget(tenant, record.digest)


@router.put("/adapters/{identity}/pin", status_code=204, dependencies=[Depends(needs("adapt"))], responses={404: {}})
def pin_adapter(identity: AdapterId, state: State, tenant: Tenant) -> None:
    """Keep an adapter: it does not expire, and its weights are not evicted."""
    _pin(identity, state, tenant, pinned=True)


@router.delete("/adapters/{identity}/pin", status_code=204, dependencies=[Depends(needs("adapt"))], responses={404: {}})
def unpin_adapter(identity: AdapterId, state: State, tenant: Tenant) -> None:
    """Let an adapter expire again; its TTL starts anew."""
    _pin(identity, state, tenant, pinned=False)


def _pin(identity: str, state: ServiceState, tenant: str, *, pinned: bool) -> None:
    ttl_ms = state.records.pin(tenant, identity, pinned)
    record = state.records.get(tenant, identity)
    if ttl_ms is None or record is None:
        raise UnknownAdapter(f"no adapter {identity}")
    state.store.keep(tenant, identity, record.fence, None if pinned else ttl_ms)


def status_of(record: Record, state: ServiceState) -> Status:
    """The record's status, with `evicted` in place of `ready` where the cache no longer has the weights."""
    if record.status == "ready" and not state.store.has(record.tenant, record.adapter_id, record.fence):
        return "evicted"
    return record.status


def _view(record: Record, state: ServiceState) -> AdapterView:
    taken = len(record.support_loss) if record.status in ("ready", "expired") else None
    return AdapterView(
        adapter_id=record.adapter_id,
        status=status_of(record, state),
        initialization=record.recipe.initialization,
        initialization_digest=record.recipe.initialization_digest,
        labels=list(record.recipe.labels),
        examples=len(record.recipe.support),
        steps=taken if record.recipe.steps is None else record.recipe.steps,
        seed=record.recipe.seed,
        label_words=record.recipe.label_words,
        precision=record.recipe.precision,
        attempt=record.attempt,
        support_loss=list(record.support_loss),
        truncated=list(record.truncated),
        timings=record.timings,
        digest=record.digest,
        error=record.error,
        last_error=record.last_error,
        pinned=record.pinned,
        recovery_ms=record.recovery_ms,
        created_at=record.created_at / 1000,
        expires_at=None if record.pinned else record.expires_at / 1000,
    )
