"""From a checked request to its job: the id, what a dry run says of it, and the answer once the job is on record."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Header, Query, Response
from starlette.concurrency import run_in_threadpool

from service.adapting.checked_request import CheckedRequest
from service.errors import UnknownAdapter
from service.http.prefer import prefer_wait
from service.http.schemas import AdaptAnswer, DryRunAnswer, Warned
from service.http.state import ServiceState, State, Tenant
from service.http.views import status_of
from worker.kinds.kind import Canonical
from worker.kinds.registry import task_kinds
from worker.ledger.ids import adapter_id
from worker.ledger.messages import JobRecipe, Status
from worker.ledger.record import Record


@dataclass
class HowToAnswer:
    """How the request wants to be answered; FastAPI fills it in."""

    response: Response
    state: State
    tenant: Tenant
    prefer: Annotated[
        str | None, Header(description="`wait=SECONDS`: answer as soon as the adapter is ready", examples=["wait=30"])
    ] = None
    idempotency_key: Annotated[
        str | None,
        Header(
            description="of a request that may be sent again; kept for 24 hours",
            min_length=1,
            max_length=255,
            pattern="^[ -~]+$",
            examples=["5f0c7a1e-adapt-support-desk"],
        ),
    ] = None
    dry_run: Annotated[bool, Query(description="validate everything, write nothing")] = False


@dataclass(frozen=True)
class _Job:
    """`truncated`: examples of the recipe's support, by position, that were cut."""

    identity: str
    recipe: JobRecipe
    truncated: tuple[int, ...]
    secret: bytes = field(repr=False)


async def accepted(request: CheckedRequest, how: HowToAnswer) -> AdaptAnswer | DryRunAnswer:
    """Put the request on record and answer it as it wants; a dry run only says what it would give."""
    state, tenant = how.state, how.tenant
    seconds = prefer_wait(how.prefer, state.settings.max_wait_seconds)
    job = await run_in_threadpool(_resolved, request, state, tenant)
    if how.dry_run:
        how.response.status_code = 200
        return await run_in_threadpool(_foreseen, request, job, state, tenant)
    identity, status, truncated = await run_in_threadpool(_recorded, request, job, how)
    if seconds and status in ("queued", "running"):
        record = await state.jobs.wait(tenant, identity, seconds)
        if record is None:
            raise UnknownAdapter(identity, "adapter {} was deleted while it was being made")
        status = record.status
    how.response.status_code = 200 if status == "ready" else 202
    how.response.headers["Location"] = f"/adapters/{identity}"
    return AdaptAnswer(adapter_id=identity, status=status, truncated=_in_request_order(request, truncated))


def _resolved(request: CheckedRequest, state: ServiceState, tenant: str) -> _Job:
    """The job of a request. Blocking, as all below."""
    recipe = request.recipe
    rows = request.deployed.base.inputs.encode(task_kinds()[recipe.kind].inputs(recipe.support))
    truncated = tuple(i for i, row in enumerate(rows) if row.truncated)
    secret = state.records.id_key()
    return _Job(adapter_id(secret, tenant, recipe), recipe, truncated, secret)


def _recorded(request: CheckedRequest, job: _Job, how: HowToAnswer) -> tuple[str, Status, set[Canonical]]:
    """The adapter, its status, and which examples were cut."""
    state, tenant = how.state, how.tenant
    key, content = how.idempotency_key, ""
    if key is not None:
        content = f"{request.path} {request.body.model_dump_json(exclude_unset=True)}"
        first = state.idempotency.first(job.secret, tenant, key, content)
        # The same request may give another adapter where an initialization was replaced meanwhile.
        if first is not None and first != job.identity:
            record, recipe = state.records.get(tenant, first), state.records.recipe(tenant, first)
            if record is not None and recipe is not None:
                return first, status_of(record, state), _cut(recipe, record.truncated)
    ttl_ms = 1000 * (request.ttl_seconds or state.settings.default_ttl_seconds)
    queue = request.deployed.queue
    status = state.jobs.start(tenant, job.identity, job.recipe, ttl_ms, job.truncated, request.notes, queue=queue)
    if key is not None:  # only now: a request that was refused has not used its key up
        state.idempotency.keep(job.secret, tenant, key, content, job.identity)
    if status == "ready":
        status = _kept(tenant, job.identity, ttl_ms, request, state)
    return job.identity, status, _cut(job.recipe, job.truncated)


def _kept(tenant: str, identity: str, ttl_ms: int, request: CheckedRequest, state: ServiceState) -> Status:
    """Have the weights' TTL start anew; where they are gone, have them made again."""
    record: Record | None = state.records.get(tenant, identity)
    if record is not None and not state.store.keep(tenant, identity, record.fence, None if record.pinned else ttl_ms):
        state.jobs.start_again(record, "evicted", request.deployed.queue)
        return "queued"
    return "ready"


def _cut(recipe: JobRecipe, truncated: Sequence[int]) -> set[Canonical]:
    return {recipe.support[i] for i in truncated}


def _in_request_order(request: CheckedRequest, cut: set[Canonical]) -> list[int]:
    return [i for i, example in enumerate(request.own) if example in cut]


def _foreseen(request: CheckedRequest, job: _Job, state: ServiceState, tenant: str) -> DryRunAnswer:
    record = state.records.get(tenant, job.identity)
    truncated = _in_request_order(request, _cut(job.recipe, job.truncated))
    support = job.recipe.support
    counts = Counter(example[-1] for example in support)
    of_examples = _warnings(request, truncated, request.deployed.base.inputs.limit)
    return DryRunAnswer(
        adapter_id=job.identity,
        status="new" if record is None else status_of(record, state),
        examples=len(support),
        labels={label: counts[label] for label in job.recipe.labels},
        steps=job.recipe.steps,
        truncated=truncated,
        warnings=[*request.kind.warnings(support), *of_examples],
    )


def _warnings(request: CheckedRequest, truncated: list[int], limit: str) -> Iterator[Warned]:
    seen = dict.fromkeys(request.before, "one that the adapter has")
    for i, example in enumerate(request.own):
        place = seen.setdefault(example, f"support[{i}]")
        if place != f"support[{i}]":
            yield Warned(field=f"support[{i}]", message=f"the same example as {place}")
    for i in truncated:
        yield Warned(field=f"support[{i}].input", message=f"cut to {limit}")
