"""`POST /predict`."""

import asyncio

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from service.errors import AdapterNotReady, Unavailable, UnknownAdapter
from service.limits import check_predict
from service.predictor import Answer, NotResident
from service.schemas import PredictAnswer, Prediction, PredictRequest
from service.state import ServiceState, State, Tenant
from worker.errors import WeightsCorrupt, WeightsMissing
from worker.records import Record

router = APIRouter(tags=["predictions"])


@router.post("/predict", responses={404: {}, 409: {}, 413: {}, 422: {}, 503: {}})
async def predict(request: PredictRequest, state: State, tenant: Tenant) -> PredictAnswer:
    """Label inputs with an adapter. Never answers with the bare base model in an adapter's place."""
    check_predict(request, state.settings)
    record = await run_in_threadpool(state.records.get, tenant, request.adapter_id)
    answer, record = await _answer(record, request, state, tenant)
    predictions = []
    for row in answer.probabilities:
        best = max(range(len(row)), key=row.__getitem__)
        predictions.append(Prediction(label=answer.labels[best], probabilities=dict(zip(answer.labels, row, strict=True))))
    return PredictAnswer(
        adapter_id=request.adapter_id, digest=str(record.digest), predictions=predictions, truncated=answer.truncated
    )


async def _answer(record: Record | None, request: PredictRequest, state: ServiceState, tenant: str) -> tuple[Answer, Record]:
    """Answer from the device, else with the cached weights, else adapt again from the record and wait a few seconds for it."""
    ready = _ready(record, request.adapter_id)
    key = f"{tenant}/{ready.digest}"
    content = None
    if not state.predictor.resident(key):
        try:
            content = await run_in_threadpool(_weights, state, ready)
        except (WeightsMissing, WeightsCorrupt):
            ready = await _adapt_again(ready, state)
            key = f"{tenant}/{ready.digest}"
            content = await run_in_threadpool(_weights, state, ready)
    try:
        future = await run_in_threadpool(state.predictor.submit, key, content, request.inputs)
        return await asyncio.wrap_future(future), ready
    except NotResident:  # it left the device between the question and the call
        content = await run_in_threadpool(_weights, state, ready)
        future = await run_in_threadpool(state.predictor.submit, key, content, request.inputs)
        return await asyncio.wrap_future(future), ready


def _ready(record: Record | None, identity: str) -> Record:
    if record is None:
        raise UnknownAdapter(f"no adapter {identity}")
    if record.status == "failed":
        raise AdapterNotReady(f"adapter {identity} failed: {record.error}", adapter_status="failed", reason=record.error)
    if record.status != "ready":
        raise AdapterNotReady(f"adapter {identity} is {record.status}", adapter_status=record.status)
    return record


def _weights(state: ServiceState, record: Record) -> bytes:
    return state.store.get(record.tenant, record.adapter_id, record.fence, str(record.digest))


async def _adapt_again(record: Record, state: ServiceState) -> Record:
    await run_in_threadpool(
        state.jobs.start,
        record.tenant,
        record.adapter_id,
        record.recipe,
        record.ttl_ms,
        record.truncated,
        requeue=True,
    )
    again = await state.jobs.wait(record.tenant, record.adapter_id, state.settings.readapt_wait_seconds)
    if again is not None and again.status in ("queued", "running"):
        raise Unavailable(f"adapter {record.adapter_id} was evicted and is being made again")
    return _ready(again, record.adapter_id)
