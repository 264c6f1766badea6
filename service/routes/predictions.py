"""`POST /predict`."""

import asyncio
import logging
from typing import Literal

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool

from metatrain.errors import MetatrainError
from service.errors import AdapterNotReady, Unavailable, UnknownAdapter
from service.limits import check_predict
from service.predictor import Answer, NotResident
from service.schemas import PredictAnswer, Prediction, PredictRequest
from service.state import ServiceState, State, Tenant
from worker.errors import WeightsCorrupt, WeightsMissing
from worker.logs import fields
from worker.records import Record

log = logging.getLogger(__name__)
router = APIRouter(tags=["predictions"])
_TRIES = 3
_ANSWER_SECONDS = 60.0


@router.post("/predict", responses={404: {}, 409: {}, 413: {}, 422: {}, 503: {}})
async def predict(request: PredictRequest, state: State, tenant: Tenant) -> PredictAnswer:
    """Label inputs with an adapter. Never answers with the bare base model in an adapter's place."""
    check_predict(request, state.settings)
    record = await run_in_threadpool(state.records.get, tenant, request.adapter_id)
    for _ in range(_TRIES):
        if record is not None and record.readapting:
            record = await state.jobs.wait(tenant, request.adapter_id, state.settings.readapt_wait_seconds)
        ready = _ready(record, request.adapter_id)
        try:
            return _view(request.adapter_id, ready, await _answer(ready, request, state))
        except (WeightsMissing, WeightsCorrupt) as error:
            with fields(adapter=ready.adapter_id, tenant=ready.tenant):
                log.info("%s", error)
            why: Literal["evicted", "corrupt"] = "corrupt" if isinstance(error, WeightsCorrupt) else "evicted"
            await run_in_threadpool(state.jobs.start_again, ready, why)
        record = await run_in_threadpool(state.records.get, tenant, request.adapter_id)
    raise Unavailable(f"adapter {request.adapter_id} is evicted faster than it is made; the cache is too small")


async def _answer(ready: Record, request: PredictRequest, state: ServiceState) -> Answer:
    """Answer from the device, else with the cached weights. Raises WeightsMissing, WeightsCorrupt where those are not there."""
    key = f"{ready.tenant}/{ready.digest}"
    try:
        for from_cache in (False, True) if state.predictor.resident(key) else (True,):
            weights = await run_in_threadpool(_weights, state, ready) if from_cache else None
            try:
                future = await run_in_threadpool(state.predictor.submit, key, weights, request.inputs)
                return await asyncio.wait_for(asyncio.wrap_future(future), _ANSWER_SECONDS)
            except NotResident:  # it left the device between the question and the call
                continue
    except TimeoutError:
        raise Unavailable(f"no prediction within {_ANSWER_SECONDS:.0f} s") from None
    except MetatrainError as error:
        raise AdapterNotReady(f"this service cannot use adapter {ready.adapter_id}: {error}", adapter_status="ready") from error
    raise WeightsMissing(f"the weights of {ready.adapter_id} left the device as soon as they were there")


def _ready(record: Record | None, identity: str) -> Record:
    if record is None:
        raise UnknownAdapter(f"no adapter {identity}")
    if record.readapting:
        raise Unavailable(f"adapter {identity} was evicted and is being made again")
    if record.status == "failed":
        raise AdapterNotReady(f"adapter {identity} failed: {record.error}", adapter_status="failed", reason=record.error)
    if record.status != "ready":
        raise AdapterNotReady(f"adapter {identity} is {record.status}", adapter_status=record.status)
    return record


def _weights(state: ServiceState, record: Record) -> bytes:
    return state.store.get(record.tenant, record.adapter_id, record.fence, str(record.digest))


def _view(identity: str, record: Record, answer: Answer) -> PredictAnswer:
    predictions = []
    for row in answer.probabilities:
        best = max(range(len(row)), key=row.__getitem__)
        predictions.append(Prediction(label=answer.labels[best], probabilities=dict(zip(answer.labels, row, strict=True))))
    return PredictAnswer(adapter_id=identity, digest=str(record.digest), predictions=predictions, truncated=answer.truncated)
