"""`GET /adapters/{adapter_id}/events`: a job as it goes on, as server-sent events."""

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
from starlette.concurrency import run_in_threadpool

from service.errors import InvalidRequest, ServiceError, UnknownAdapter
from service.http.openapi import OF_ANY_ROUTE, Responses, problems
from service.http.schemas import AdapterId
from service.http.state import ServiceState, State, Tenant
from service.http.views import require, view
from worker.ledger.record import JobState
from worker.logs import fields

log = logging.getLogger(__name__)
router = APIRouter(tags=["adapters"])
ALIVE_SECONDS = 15.0
KEY_ASKED_SECONDS = 1.0
"""Between two times that a stream's key is asked for again."""
LONGEST_SECONDS = 600.0
"""A stream's life; who still wants to know comes again, with `Last-Event-ID`."""
_LOOK_SECONDS = {"running": 0.2, "queued": 0.5}
"""Between two looks at the record; the end of a job is heard of at once."""
_END, _WAITS = 100_000, 100_001
"""Numbers of an attempt's end, and of its job waiting again after it: later than any step's."""
Number = tuple[int, int]
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
    204: {"description": "`Last-Event-ID` was that of the end: there is nothing more, and no need to come again"},
}


@dataclass(frozen=True)
class _Event:
    number: Number
    kind: str
    data: dict[str, Any]


async def _place(state: State, tenant: Tenant) -> AsyncIterator[None]:
    """Among the streams that a tenant may keep open, until this one has ended."""
    with state.streams.one(tenant):
        yield


@router.get(
    "/adapters/{adapter_id}/events",
    response_class=StreamingResponse,
    response_model=None,
    dependencies=[Depends(_place)],
    responses={**_ANSWERS, **problems(*OF_ANY_ROUTE, InvalidRequest, UnknownAdapter)},
)
async def adapter_events(
    adapter_id: AdapterId,
    connection: Request,
    state: State,
    tenant: Tenant,
    last_event_id: Annotated[
        str | None,
        Header(pattern=r"^[0-9]{1,15}-[0-9]{1,6}$", description="of the last event that came: goes on after it", examples=["7-1"]),
    ] = None,
) -> Response:
    """`status` `{"status", "attempt"}`, `step` `{"step", "support_loss"}`, and in the end `end` with the adapter as `GET` shows it.
    A stream that ends without `end`: the adapter was deleted, ten minutes are over, the key no longer holds, or the service stops;
    come again with `Last-Event-ID`."""
    job = require(adapter_id, await run_in_threadpool(state.records.job_state, tenant, adapter_id))
    seen = (-1, -1) if last_event_id is None else _parsed(last_event_id)
    if not _unfinished(job) and seen >= (job.fence, _END):
        return Response(status_code=204)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    authorizations = [value for name, value in connection.headers.raw if name == b"authorization"]
    stream = _stream(tenant, adapter_id, state, seen, authorizations)
    return StreamingResponse(stream, headers=headers, media_type="text/event-stream")


async def _stream(
    tenant: str, adapter_id: str, state: ServiceState, seen: Number, authorizations: list[bytes]
) -> AsyncIterator[bytes]:
    """Ends where the key, or coming without one, is refused by now, and where the records go out of reach."""
    try:
        async with contextlib.aclosing(_told(tenant, adapter_id, state, seen, authorizations)) as told:
            async for line in told:
                yield line
    except ServiceError as error:
        log.info("a stream ends: %s", error.title)
    except redis.RedisError as error:
        with fields(adapter=adapter_id, tenant=tenant):
            log.warning("a stream ends: the records are out of reach: %s", type(error).__name__)


async def _told(
    tenant: str, adapter_id: str, state: ServiceState, seen: Number, authorizations: list[bytes]
) -> AsyncGenerator[bytes, None]:
    loop = asyncio.get_running_loop()
    began = asked = spoke = loop.time()
    with state.jobs.hearing(tenant, adapter_id) as ended:
        while True:
            if loop.time() - asked >= KEY_ASKED_SECONDS:
                asked = loop.time()
                await state.door.admit(authorizations)
            ended.clear()  # before looking, so that an end between the look and the wait is not missed
            job = await run_in_threadpool(state.records.job_state, tenant, adapter_id)
            if job is None:
                return
            for event in _so_far(job):
                if event.number > seen:
                    seen, spoke = event.number, loop.time()
                    yield _line(event.number, event.kind, json.dumps(event.data))
            if not _unfinished(job):
                if (end := await run_in_threadpool(_end, tenant, adapter_id, state)) is not None:
                    yield _line((job.fence, _END), "end", end)
                return
            if state.jobs.stopping or loop.time() - began >= LONGEST_SECONDS:
                return
            if loop.time() - spoke >= ALIVE_SECONDS:
                spoke = loop.time()
                yield format_sse_event(comment="alive")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), _LOOK_SECONDS[job.status])


def _so_far(job: JobState) -> Iterator[_Event]:
    """What there is to say of an attempt before its end. Always the same for the same number, so that who comes again is told
    each thing once."""
    status = {"status": job.status, "attempt": job.attempt}
    if job.status == "running":
        yield _Event((job.fence, 0), "status", status)
    for i, loss in enumerate(job.support_loss, start=1):
        yield _Event((job.fence, i), "step", {"step": i, "support_loss": loss})
    if job.status == "queued":
        yield _Event((job.fence, _WAITS), "status", status)


def _end(tenant: str, adapter_id: str, state: ServiceState) -> str | None:
    record = state.records.get(tenant, adapter_id)
    return None if record is None else view(record, state).model_dump_json()


def _unfinished(job: JobState) -> bool:
    return job.status in ("queued", "running")


def _line(number: Number, kind: str, data: str) -> bytes:
    return format_sse_event(data_str=data, event=kind, id=f"{number[0]}-{number[1]}")


def _parsed(last_event_id: str) -> Number:
    fence, number = last_event_id.split("-")
    return int(fence), int(number)
