"""Record the jobs of checked adaptation requests and respond. A dry run gets a response without a job."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from fastapi import Header, Query, Response

from service.adapting.checked_request import CheckedRequest
from service.adapting.idempotency import idempotency_key
from service.adapting.warnings import warnings
from service.errors import IdempotencyKeyReused, InvalidRequest, UnknownAdapter
from service.http.prefer import prefer_wait
from service.http.schemas import AdaptAnswer, DryRunAnswer, Warned
from service.http.state import ServiceState, State, Tenant
from service.http.tenant_threads import in_thread
from service.http.views import status_of
from service.kinds.kind import SeenExample, SeenSupport
from worker.errors import KeyUsed
from worker.kinds.kind import Canonical
from worker.kinds.registry import task_kinds
from worker.ledger.idempotency import IdempotencyKey
from worker.ledger.ids import adapter_id
from worker.ledger.messages import JobRecipe, Status
from worker.ledger.record import Record


@dataclass(frozen=True)
class AdaptContext:
    """Everything but the body of an adaptation request: headers, query, tenant, and the response to it."""

    response: Response
    state: ServiceState
    tenant: str
    prefer: str | None
    idempotency_key: str | None
    dry_run: bool


async def adapt_context(
    response: Response,
    state: State,
    tenant: Tenant,
    prefer: Annotated[
        str | None,
        Header(description="`wait=SECONDS`: answer when the job has ended, or after so many seconds", examples=["wait=30"]),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        Header(
            description="a key of your choice for this request; within 24 hours, another request with the same key is refused",
            min_length=1,
            max_length=255,
            pattern="^[ -~]+$",
            examples=["5f0c7a1e-adapt-support-desk"],
        ),
    ] = None,
    dry_run: Annotated[bool, Query(description="validate the request and write nothing")] = False,
) -> AdaptContext:
    """Return the context of a request. A FastAPI dependency."""
    return AdaptContext(response, state, tenant, prefer, idempotency_key, dry_run)


@dataclass(frozen=True)
class _Job:
    """The job that a request asks for.

    `idempotency` has the digests of the request and its Idempotency-Key, None if it has no key. `truncated` has the positions, in
    the recipe's support set, of examples that are longer than the base model's maximum length, and `cost` is the number of tokens
    times the number of inner steps. `refusal` is the reason why a new adapter cannot be made from these examples as the base model
    sees them; None if there is none. These and `warnings` are known once the examples have been tokenized.
    """

    adapter_id: str
    recipe: JobRecipe
    idempotency: IdempotencyKey | None = field(repr=False)
    truncated: tuple[int, ...] = ()
    cost: int = 1
    refusal: InvalidRequest | None = None
    warnings: tuple[Warned, ...] = ()


async def accept(request: CheckedRequest, context: AdaptContext) -> AdaptAnswer | DryRunAnswer:
    """Record the job that a request asks for, and return the response body. A dry run records nothing.

    With `Prefer: wait`, first wait for the job to end. Also sets the status and headers of the response. Raises UnknownAdapter if
    the adapter is deleted while the request waits for it, and InvalidRequest if the base model cannot learn from an example.
    """
    state, tenant = context.state, context.tenant
    seconds = prefer_wait(context.prefer, state.settings.max_wait_seconds)
    secret = await in_thread(state.records.id_key)
    job = await state.work.run(tenant, _build_job, request, secret, context)
    if not context.dry_run:
        await in_thread(_check_room, job, context)  # before the texts are tokenized, which costs most
    job = await state.work.run(tenant, _tokenize, request, job)
    if job.refusal is not None and not await in_thread(_is_on_record, job, context):
        raise job.refusal
    if context.dry_run:
        context.response.status_code = 200
        existing = await in_thread(_status_of_existing, tenant, job.adapter_id, state)
        return await state.work.run(tenant, _dry_run_answer, request, job, existing)
    identity, status, truncated = await in_thread(_record_job, request, job, context)
    if seconds and status in ("queued", "running"):
        record = await state.jobs.wait(tenant, identity, seconds)
        if record is None:
            raise UnknownAdapter(identity, "adapter {} was deleted before its job ended")
        status = record.status
    context.response.status_code = 200 if status == "ready" else 202
    context.response.headers["Location"] = f"/adapters/{identity}"
    positions = _positions_in_request(request, truncated)
    return AdaptAnswer(adapter_id=identity, status=status, truncated=positions, warnings=list(job.warnings))


# The functions below compute for long or call Redis. The event loop must not call them directly: those that compute run in the
# work pool, those that call Redis in the tenant's threads.


def _build_job(request: CheckedRequest, secret: bytes, context: AdaptContext) -> _Job:
    recipe, idempotency = request.recipe, None
    if context.idempotency_key is not None:
        content = f"{request.path} {request.body.model_dump_json(exclude_unset=True)}"
        idempotency = idempotency_key(secret, context.idempotency_key, content)
    return _Job(adapter_id(secret, context.tenant, recipe), recipe, idempotency)


def _tokenize(request: CheckedRequest, job: _Job) -> _Job:
    """Return the job with everything that is known from the tokens of its examples."""
    recipe, inputs = job.recipe, request.deployed.base.inputs
    rows = inputs.encode(task_kinds()[recipe.kind].inputs(recipe.support))
    steps = request.init.inner.most_steps if recipe.steps is None else recipe.steps
    seen = {example: inputs.seen(row) for example, row in zip(recipe.support, rows, strict=True)}
    support = SeenSupport(
        tuple(SeenExample("the adapter", example, seen[example]) for example in request.parent_examples),
        tuple(SeenExample(f"support[{i}]", example, seen[example]) for i, example in enumerate(request.new_examples)),
        inputs,
    )
    refusal = None
    try:
        request.kind.check_seen(support, request.options)
    except InvalidRequest as error:
        refusal = error
    return replace(
        job,
        truncated=tuple(i for i, row in enumerate(rows) if row.truncated),
        cost=sum(map(len, rows)) * max(1, steps),
        refusal=refusal,
        warnings=tuple(warnings(request, support)),
    )


def _is_on_record(job: _Job, context: AdaptContext) -> bool:
    """Return True if the adapter has a record, or if its request was accepted before with this key.

    The key is the Idempotency-Key. Earlier versions accepted examples that are now refused, and what they accepted goes on working.
    """
    records, tenant = context.state.records, context.tenant
    if records.get(tenant, job.adapter_id) is not None:
        return True
    return job.idempotency is not None and records.accepted_with(tenant, job.idempotency)


def _check_room(job: _Job, context: AdaptContext) -> None:
    """Raise LimitReached if one of the tenant's limits would refuse the job.

    A request whose Idempotency-Key was used before is left to `_record_job`, because an equal one has been accepted already.
    """
    context.state.jobs.check_room(context.tenant, job.adapter_id, job.recipe, job.idempotency)


def _record_job(request: CheckedRequest, job: _Job, context: AdaptContext) -> tuple[str, Status, set[Canonical]]:
    """Record the job, and return the adapter's id, its status and the examples that are truncated."""
    state, tenant = context.state, context.tenant
    ttl_ms = 1000 * (request.ttl_seconds or state.settings.default_ttl_seconds)
    queue = request.deployed.queue(job.recipe.summary)
    try:
        status = state.jobs.start(
            tenant,
            job.adapter_id,
            job.recipe,
            ttl_ms,
            job.truncated,
            request.notes,
            queue=queue,
            cost=job.cost,
            idempotency=job.idempotency,
        )
    except KeyUsed as used:
        return _answer_of_first(used.adapter_id, state, tenant)
    if status == "ready":
        status = _renew_weights(tenant, job.adapter_id, ttl_ms, request, state)
    return job.adapter_id, status, _truncated_examples(job.recipe, job.truncated)


def _answer_of_first(adapter_id: str | None, state: ServiceState, tenant: str) -> tuple[str, Status, set[Canonical]]:
    """Return what `_record_job` returned for the first request with the same idempotency key.

    The initialization may have been replaced since: then the same request now has another adapter id. Raises IdempotencyKeyReused
    if `adapter_id` is None, because the first request was another one.
    """
    if adapter_id is None:
        raise IdempotencyKeyReused(
            "Idempotency-Key: expected the request that this key was first used for, got another one; "
            "use a new key for it, or wait until 24 hours have passed"
        )
    record, recipe = state.records.get(tenant, adapter_id), state.records.recipe(tenant, adapter_id)
    if record is None or recipe is None:
        raise UnknownAdapter(adapter_id, "adapter {} of this Idempotency-Key was just deleted: send the request again")
    return adapter_id, status_of(record, state), _truncated_examples(recipe, record.truncated)


def _renew_weights(tenant: str, identity: str, ttl_ms: int, request: CheckedRequest, state: ServiceState) -> Status:
    """Restart the TTL of an adapter's cached weights, or queue the adapter again if they were evicted.

    Returns the status to respond with: `ready` or `queued`.
    """
    record: Record | None = state.records.get(tenant, identity)
    if record is not None and not state.store.keep(tenant, identity, record.fence, None if record.pinned else ttl_ms):
        state.jobs.readapt(record, "evicted", request.deployed.queue(record.summary))
        return "queued"
    return "ready"


def _truncated_examples(recipe: JobRecipe, truncated: Sequence[int]) -> set[Canonical]:
    return {recipe.support[i] for i in truncated}


def _positions_in_request(request: CheckedRequest, examples: set[Canonical]) -> list[int]:
    return [i for i, example in enumerate(request.new_examples) if example in examples]


def _status_of_existing(tenant: str, identity: str, state: ServiceState) -> Status | Literal["new"]:
    record = state.records.get(tenant, identity)
    return "new" if record is None else status_of(record, state)


def _dry_run_answer(request: CheckedRequest, job: _Job, status: Status | Literal["new"]) -> DryRunAnswer:
    truncated = _positions_in_request(request, _truncated_examples(job.recipe, job.truncated))
    support = job.recipe.support
    counts = Counter(example[-1] for example in support)
    return DryRunAnswer(
        adapter_id=job.adapter_id,
        status=status,
        examples=len(support),
        labels={label: counts[label] for label in job.recipe.labels},
        steps=job.recipe.steps,
        truncated=truncated,
        warnings=list(job.warnings),
    )
