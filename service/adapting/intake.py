"""From a request to adapt to its job: the recipe, its id, what a dry run says of it, and the answer once the job is on record."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Header, Query, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from metatrain.artifacts.artifact import Initialization
from service.errors import InvalidRequest, UnknownAdapter
from service.http.limits import prefer_wait
from service.http.schemas import AdaptAnswer, DryRunAnswer, Options, Warned
from service.http.state import ServiceState, State, Tenant
from service.http.views import status_of
from worker.ledger.ids import adapter_id
from worker.ledger.messages import JobRecipe, Status
from worker.ledger.notes import Notes
from worker.ledger.record import Record

Pairs = Sequence[tuple[str, str]]
_IMBALANCE = 5
"""A label with this many times the examples of another is worth a warning."""


@dataclass(frozen=True)
class Order:
    """What is to be adapted: the (input, label) pairs of the request, and those that they stand beside. `path` and `body` tell
    requests apart that come with the same Idempotency-Key."""

    own: Pairs
    before: Pairs
    init: Initialization
    options: Options
    ttl_seconds: int | None
    notes: Notes
    path: str
    body: BaseModel


@dataclass
class Handling:
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
    """`truncated`: pairs of the recipe's support, by position, that were cut."""

    identity: str
    recipe: JobRecipe
    truncated: tuple[int, ...]
    secret: bytes = field(repr=False)


def initialization(name: str, state: ServiceState) -> Initialization:
    """Raises InvalidRequest for a name that this deployment does not have."""
    init = state.initializations.get(name)
    if init is None:
        raise InvalidRequest("initialization", f"one of {', '.join(sorted(state.initializations))}", name)
    return init


async def taken(order: Order, how: Handling) -> AdaptAnswer | DryRunAnswer:
    """Put the order on record and answer as the request wants it; a dry run only says what it would give."""
    state, tenant = how.state, how.tenant
    seconds = prefer_wait(how.prefer, state.settings.max_wait_seconds)
    job = await run_in_threadpool(_resolved, order, state, tenant)
    if how.dry_run:
        how.response.status_code = 200
        return await run_in_threadpool(_foreseen, order, job, state, tenant)
    identity, status, truncated = await run_in_threadpool(_accepted, order, job, how)
    if seconds and status in ("queued", "running"):
        record = await state.jobs.wait(tenant, identity, seconds)
        if record is None:
            raise UnknownAdapter(f"adapter {identity} was deleted while it was being made")
        status = record.status
    how.response.status_code = 200 if status == "ready" else 202
    how.response.headers["Location"] = f"/adapters/{identity}"
    return AdaptAnswer(adapter_id=identity, status=status, truncated=_in_request_order(order, truncated))


def _resolved(order: Order, state: ServiceState, tenant: str) -> _Job:
    """Blocking, as all below."""
    support = tuple(sorted((*order.before, *order.own), key=lambda pair: pair[::-1]))
    recipe = JobRecipe(
        initialization=order.init.name,
        initialization_digest=order.init.digest,
        support=support,
        steps=steps_of(support, order.options, order.init),
        seed=order.options.seed,
        label_words=order.options.label_words,
        precision=state.base.precision,
    )
    rows = state.base.inputs.encode([text for text, _ in support])
    secret = state.records.id_key()
    return _Job(adapter_id(secret, tenant, recipe), recipe, tuple(i for i, row in enumerate(rows) if row.truncated), secret)


def _accepted(order: Order, job: _Job, how: Handling) -> tuple[str, Status, set[tuple[str, str]]]:
    """The adapter, its status, and which pairs were cut."""
    state, tenant = how.state, how.tenant
    key, request = how.idempotency_key, ""
    if key is not None:
        request = f"{order.path} {order.body.model_dump_json(exclude_unset=True)}"
        first = state.idempotency.first(job.secret, tenant, key, request)
        # The same request may give another adapter where an initialization was replaced meanwhile.
        if first is not None and first != job.identity:
            record, recipe = state.records.get(tenant, first), state.records.recipe(tenant, first)
            if record is not None and recipe is not None:
                return first, status_of(record, state), _cut(recipe, record.truncated)
    ttl_ms = 1000 * (order.ttl_seconds or state.settings.default_ttl_seconds)
    status = state.jobs.start(tenant, job.identity, job.recipe, ttl_ms, job.truncated, order.notes)
    if key is not None:  # only now: a request that was refused has not used its key up
        state.idempotency.keep(job.secret, tenant, key, request, job.identity)
    if status == "ready":
        status = _kept(tenant, job.identity, ttl_ms, state)
    return job.identity, status, _cut(job.recipe, job.truncated)


def _kept(tenant: str, identity: str, ttl_ms: int, state: ServiceState) -> Status:
    """Have the weights' TTL start anew; where they are gone, have them made again."""
    record: Record | None = state.records.get(tenant, identity)
    if record is not None and not state.store.keep(tenant, identity, record.fence, None if record.pinned else ttl_ms):
        state.jobs.start_again(record, "evicted")
        return "queued"
    return "ready"


def steps_of(support: Pairs, options: Options, init: Initialization) -> int | None:
    """As asked for, or as the initialization has it for these shots (a label's words are one more); None where it has the support
    set's own accuracy decide."""
    counts = Counter(label for _, label in support)
    words = 1 if options.label_words else 0
    if options.steps is None:
        size = len(support) + words * len(counts), len(counts)
        return None if init.inner.asks(*size) else init.inner.steps_for(*size)
    if options.steps and max(counts.values()) + words == 1 and not init.inner.teaches_one_shot(len(support)):
        raise InvalidRequest("options.steps", f"0 for one example of each label with initialization {init.name!r}", options.steps)
    return options.steps


def _cut(recipe: JobRecipe, truncated: Sequence[int]) -> set[tuple[str, str]]:
    return {recipe.support[i] for i in truncated}


def _in_request_order(order: Order, cut: set[tuple[str, str]]) -> list[int]:
    return [i for i, pair in enumerate(order.own) if tuple(pair) in cut]


def _foreseen(order: Order, job: _Job, state: ServiceState, tenant: str) -> DryRunAnswer:
    record = state.records.get(tenant, job.identity)
    truncated = _in_request_order(order, _cut(job.recipe, job.truncated))
    counts = Counter(label for _, label in job.recipe.support)
    return DryRunAnswer(
        adapter_id=job.identity,
        status="new" if record is None else status_of(record, state),
        examples=len(job.recipe.support),
        labels=dict(sorted(counts.items())),
        steps=job.recipe.steps,
        truncated=truncated,
        warnings=[*_of_labels(counts), *_of_examples(order, truncated, state.base.inputs.limit)],
    )


def _of_labels(counts: Counter[str]) -> Iterator[Warned]:
    for label in sorted(counts):
        if counts[label] == 1:
            yield Warned(field="support", message=f"label {label!r} has one example")
    (most, largest), *_, (least, smallest) = counts.most_common()
    if largest >= _IMBALANCE * smallest:
        yield Warned(field="support", message=f"imbalance: label {most!r} has {largest} examples, label {least!r} has {smallest}")


def _of_examples(order: Order, truncated: list[int], limit: str) -> Iterator[Warned]:
    seen = dict.fromkeys(order.before, "one that the adapter has")
    for i, pair in enumerate(order.own):
        place = seen.setdefault(pair, f"support[{i}]")
        if place != f"support[{i}]":
            yield Warned(field=f"support[{i}]", message=f"the same example as {place}")
    for i in truncated:
        yield Warned(field=f"support[{i}].input", message=f"cut to {limit}")
