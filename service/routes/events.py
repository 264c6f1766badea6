"""`GET /adapters/{adapter_id}/events`: a job as it goes on, as server-sent events."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from starlette.concurrency import run_in_threadpool

from service.errors import InvalidRequest, UnknownAdapter
from service.openapi import OF_ANY_ROUTE, Responses, problems
from service.schemas import AdapterId
from service.state import ServiceState, State, Tenant
from service.views import view
from worker.records import Step

router = APIRouter(tags=["adapters"])
ALIVE_SECONDS = 15.0
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


@router.get(
    "/adapters/{adapter_id}/events",
    response_class=StreamingResponse,
    response_model=None,
    responses={**_ANSWERS, **problems(*OF_ANY_ROUTE, InvalidRequest, UnknownAdapter)},
)
async def adapter_events(
    adapter_id: AdapterId,
    state: State,
    tenant: Tenant,
    last_event_id: Annotated[
        str | None,
        Header(pattern=r"^[0-9]{1,15}-[0-9]{1,6}$", description="of the last event that came: goes on after it", examples=["7-1"]),
    ] = None,
) -> Response:
    """`status` `{"status", "attempt"}`, `step` `{"step", "support_loss"}`, and in the end `end` with the adapter as `GET` shows it.
    A stream that ends without `end`: the adapter was deleted, or the service stops; come again with `Last-Event-ID`."""
    step = await run_in_threadpool(state.records.step, tenant, adapter_id)
    if step is None:
        raise UnknownAdapter(f"no adapter {adapter_id}")
    seen = (-1, -1) if last_event_id is None else _parsed(last_event_id)
    if not _unfinished(step) and seen >= (step.fence, _END):
        return Response(status_code=204)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(_stream(tenant, adapter_id, state, seen), headers=headers, media_type="text/event-stream")


async def _stream(tenant: str, adapter_id: str, state: ServiceState, seen: Number) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    spoke = loop.time()
    with state.jobs.hearing(tenant, adapter_id) as ended:
        while True:
            ended.clear()  # before looking, so that an end between the look and the wait is not missed
            step = await run_in_threadpool(state.records.step, tenant, adapter_id)
            if step is None:
                return
            for event in _so_far(step):
                if event.number > seen:
                    seen, spoke = event.number, loop.time()
                    yield _line(event.number, event.kind, json.dumps(event.data))
            if not _unfinished(step):
                if (end := await run_in_threadpool(_end, tenant, adapter_id, state)) is not None:
                    yield _line((step.fence, _END), "end", end)
                return
            if state.jobs.stopping:
                return
            if loop.time() - spoke >= ALIVE_SECONDS:
                spoke = loop.time()
                yield format_sse_event(comment="alive")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), _LOOK_SECONDS[step.status])


def _so_far(step: Step) -> Iterator[_Event]:
    """What there is to say of an attempt before its end. Always the same for the same number, so that who comes again is told
    each thing once."""
    status = {"status": step.status, "attempt": step.attempt}
    if step.status == "running":
        yield _Event((step.fence, 0), "status", status)
    for i, loss in enumerate(step.support_loss, start=1):
        yield _Event((step.fence, i), "step", {"step": i, "support_loss": loss})
    if step.status == "queued":
        yield _Event((step.fence, _WAITS), "status", status)


def _end(tenant: str, adapter_id: str, state: ServiceState) -> str | None:
    record = state.records.get(tenant, adapter_id)
    return None if record is None else view(record, state).model_dump_json()


def _unfinished(step: Step) -> bool:
    return step.status in ("queued", "running")


def _line(number: Number, kind: str, data: str) -> bytes:
    return format_sse_event(data_str=data, event=kind, id=f"{number[0]}-{number[1]}")


def _parsed(last_event_id: str) -> Number:
    fence, number = last_event_id.split("-")
    return int(fence), int(number)
