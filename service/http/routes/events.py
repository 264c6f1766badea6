"""`GET /adapters/{adapter_id}/events`: the progress of a job as server-sent events."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import redis
from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event

from service.errors import InvalidRequest, ServiceError, UnknownAdapter
from service.http.auth import needs
from service.http.openapi import ROUTE_ERRORS, Responses, problems
from service.http.route import TenantRoute
from service.http.schemas import AdapterId
from service.http.state import ServiceState, State, Tenant
from service.http.tenant_threads import in_thread
from service.http.views import require, view
from worker.errors import EncryptionKeyMissing, SealBroken
from worker.ledger.record import JobState
from worker.logs import fields

log = logging.getLogger(__name__)
router = APIRouter(route_class=TenantRoute, tags=["adapters"])
KEEPALIVE_SECONDS = 15.0
"""Time without an event after which a comment is sent, so that proxies keep the connection open."""
KEY_CHECK_SECONDS = 1.0
"""Time between two checks that the stream's API key is still valid."""
LONGEST_SECONDS = 600.0
"""Longest life of a stream; a client that needs more reconnects with `Last-Event-ID`."""
_POLL_SECONDS = {"running": 0.2, "queued": 0.5}
"""Time between two reads of the record, by the job's status. The end of a job is noticed at once, without waiting for a read."""
_END, _QUEUED_AGAIN = 100_000, 100_001
"""The numbers of two events: the job ended, and the job was queued again. They are higher than the number of any step."""
EventId = tuple[int, int]
"""(fence, number). The fence identifies the attempt: a later one has a higher fence. The number identifies the event within it."""
_STREAM = """: alive

event: status
data: {"status": "running", "attempt": 1}
id: 7-0

event: step
data: {"step": 1, "support_loss": 0.41}
id: 7-1
"""
_ITEM = {
    "type": "object",
    "required": ["id", "event", "data"],
    "properties": {
        "id": {"type": "string", "pattern": "^[0-9]+-[0-9]+$"},
        "event": {"type": "string", "enum": ["status", "step", "end"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
_ANSWERS: Responses = {
    200: {"description": "The stream", "content": {"text/event-stream": {"itemSchema": _ITEM, "example": _STREAM}}},
    204: {"description": "`Last-Event-ID` was the `end` event: there are no more events, do not reconnect"},
}


@dataclass(frozen=True)
class _Event:
    id: EventId
    kind: str
    data: dict[str, Any]


async def _acquire_stream(state: State, tenant: Tenant) -> AsyncIterator[None]:
    """Count the request as an open stream until the stream ends. A FastAPI dependency.

    Raises LimitReached if the tenant already has MAX_STREAMS streams.
    """
    with state.streams.acquire(tenant):
        yield


@router.get(
    "/adapters/{adapter_id}/events",
    response_class=StreamingResponse,
    response_model=None,
    dependencies=[Depends(needs("read")), Depends(_acquire_stream)],
    responses={**_ANSWERS, **problems(*ROUTE_ERRORS, InvalidRequest, UnknownAdapter)},
)
async def adapter_events(
    adapter_id: AdapterId,
    connection: Request,
    state: State,
    tenant: Tenant,
    last_event_id: Annotated[
        str | None,
        Header(
            pattern=r"^[0-9]{1,15}-[0-9]{1,6}$",
            description="id of the last event that arrived: the stream continues after it",
            examples=["7-1"],
        ),
    ] = None,
) -> Response:
    """Stream the progress of an adapter's job as server-sent events.

    The events are `status` with `{"status", "attempt"}`, `step` with `{"step", "support_loss"}`, and finally `end` with the
    adapter as `GET /adapters/{adapter_id}` returns it. A stream may end without the event `end`: after ten minutes, if the adapter
    is deleted, if the API key is no longer valid, if the records cannot be reached, or if the service stops. Then reconnect with
    `Last-Event-ID`, and the stream continues.
    """
    job = require(adapter_id, await in_thread(state.records.job_state, tenant, adapter_id))
    seen = (-1, -1) if last_event_id is None else _parse_id(last_event_id)
    if not _unfinished(job) and seen >= (job.fence, _END):
        return Response(status_code=204)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    authorizations = [value for name, value in connection.headers.raw if name == b"authorization"]
    stream = _stream(tenant, adapter_id, state, seen, authorizations)
    return StreamingResponse(stream, headers=headers, media_type="text/event-stream")


async def _stream(
    tenant: str, adapter_id: str, state: ServiceState, seen: EventId, authorizations: list[bytes]
) -> AsyncIterator[bytes]:
    """Yield the events after the event `seen`, as bytes of the stream.

    The stream ends early if the API key is no longer valid or the records cannot be reached.
    """
    try:
        async with contextlib.aclosing(_events(tenant, adapter_id, state, seen, authorizations)) as events:
            async for event in events:
                yield event
    except ServiceError as error:
        log.info("a stream ends: %s", error.title)
    except (EncryptionKeyMissing, SealBroken) as error:
        log.error("a stream ends: %s", error)
    except redis.RedisError as error:
        with fields(adapter=adapter_id, tenant=tenant):
            log.warning("a stream ends: the records cannot be reached: %s", type(error).__name__)


async def _events(
    tenant: str, adapter_id: str, state: ServiceState, seen: EventId, authorizations: list[bytes]
) -> AsyncGenerator[bytes, None]:
    loop = asyncio.get_running_loop()
    began = checked_key = sent = loop.time()
    with state.jobs.subscribe(tenant, adapter_id) as ended:
        while True:
            if loop.time() - checked_key >= KEY_CHECK_SECONDS:
                checked_key = loop.time()
                await state.authenticator.authenticate(authorizations)
            ended.clear()  # cleared before the read, so that a job that ends between the read and the wait is not missed
            job = await in_thread(state.records.job_state, tenant, adapter_id)
            if job is None:
                return
            for event in _events_of_attempt(job):
                if event.id > seen:
                    seen, sent = event.id, loop.time()
                    yield _format(event.id, event.kind, json.dumps(event.data))
            if not _unfinished(job):
                if (adapter := await in_thread(_adapter_json, tenant, adapter_id, state)) is not None:
                    yield _format((job.fence, _END), "end", adapter)
                return
            if state.jobs.stopping or loop.time() - began >= LONGEST_SECONDS:
                return
            if loop.time() - sent >= KEEPALIVE_SECONDS:
                sent = loop.time()
                yield format_sse_event(comment="alive")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), _POLL_SECONDS[job.status])


def _events_of_attempt(job: JobState) -> Iterator[_Event]:
    """Yield all events of the job's current attempt so far, except the event `end`.

    An event has the same id each time, so that a client that reconnects gets each event once.
    """
    status = {"status": job.status, "attempt": job.attempt}
    if job.status == "running":
        yield _Event((job.fence, 0), "status", status)
    for i, loss in enumerate(job.support_loss, start=1):
        yield _Event((job.fence, i), "step", {"step": i, "support_loss": loss})
    if job.status == "queued":
        yield _Event((job.fence, _QUEUED_AGAIN), "status", status)


def _adapter_json(tenant: str, adapter_id: str, state: ServiceState) -> str | None:
    record = state.records.get(tenant, adapter_id)
    return None if record is None else view(record, state).model_dump_json()


def _unfinished(job: JobState) -> bool:
    return job.status in ("queued", "running")


def _format(event_id: EventId, kind: str, data: str) -> bytes:
    return format_sse_event(data_str=data, event=kind, id=f"{event_id[0]}-{event_id[1]}")


def _parse_id(last_event_id: str) -> EventId:
    fence, number = last_event_id.split("-")
    return int(fence), int(number)
