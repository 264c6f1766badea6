"""`POST /predict`."""

import asyncio
import logging
from typing import Literal

from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from metatrain.errors import MetatrainError
from service.auth import needs
from service.errors import AdapterNotReady, ClientGone, Unavailable, UnknownAdapter
from service.limits import check_predict
from service.predictor import Answer, Wanted
from service.schemas import PredictAnswer, Prediction, PredictRequest
from service.state import ServiceState, State, Tenant
from worker.errors import WeightsCorrupt, WeightsMissing
from worker.logs import fields
from worker.records import Record

log = logging.getLogger(__name__)
router = APIRouter(tags=["predictions"])
_TRIES = 3
_ANSWER_SECONDS = 60.0


@router.post("/predict", dependencies=[Depends(needs("predict"))], responses={404: {}, 409: {}, 413: {}, 422: {}, 429: {}, 503: {}})
async def predict(request: PredictRequest, connection: Request, response: Response, state: State, tenant: Tenant) -> PredictAnswer:
    """Label inputs with an adapter. Never answers with the bare base model in an adapter's place. The answer's `Server-Timing`
    has the milliseconds of each stage."""
    check_predict(request, state.settings)
    record = await run_in_threadpool(state.records.get, tenant, request.adapter_id)
    for _ in range(_TRIES):
        if record is not None and record.readapting:
            record = await state.jobs.wait(tenant, request.adapter_id, state.settings.readapt_wait_seconds)
        ready = _ready(record, request.adapter_id)
        try:
            answer = await _answer(ready, request, connection, state)
            state.metrics.predicted(answer.seconds)
            state.meter.predicted(tenant, len(request.inputs))
            response.headers["Server-Timing"] = ", ".join(f"{stage};dur={1e3 * s:.2f}" for stage, s in answer.seconds.items())
            return _view(request.adapter_id, ready, answer)
        except (WeightsMissing, WeightsCorrupt) as error:
            with fields(adapter=ready.adapter_id, tenant=ready.tenant):
                log.info("%s", error)
            why: Literal["evicted", "corrupt"] = "corrupt" if isinstance(error, WeightsCorrupt) else "evicted"
            await run_in_threadpool(state.jobs.start_again, ready, why)
        record = await run_in_threadpool(state.records.get, tenant, request.adapter_id)
    raise Unavailable(f"adapter {request.adapter_id} is evicted faster than it is made; the cache is too small")


async def _answer(ready: Record, request: PredictRequest, connection: Request, state: ServiceState) -> Answer:
    """Raises WeightsMissing, WeightsCorrupt where the weights are not on the device, nor in memory or cache."""
    wanted = Wanted(ready.tenant, ready.adapter_id, ready.fence, str(ready.digest))
    answer = asyncio.wrap_future(state.predictor.submit(wanted, request.inputs))
    gone = asyncio.ensure_future(_gone(connection))
    try:
        await asyncio.wait((answer, gone), timeout=_ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise ClientGone if gone.done() else Unavailable(f"no prediction within {_ANSWER_SECONDS:.0f} s")
    except MetatrainError as error:
        raise AdapterNotReady(f"this service cannot use adapter {ready.adapter_id}: {error}", adapter_status="ready") from error
    finally:
        answer.cancel()  # gives up its place in the queue
        gone.cancel()


async def _gone(connection: Request) -> None:
    """Until the client hangs up."""
    while (await connection.receive())["type"] != "http.disconnect":
        pass


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


def _view(identity: str, record: Record, answer: Answer) -> PredictAnswer:
    predictions = []
    for row in answer.probabilities:
        best = max(range(len(row)), key=row.__getitem__)
        predictions.append(Prediction(label=answer.labels[best], probabilities=dict(zip(answer.labels, row, strict=True))))
    return PredictAnswer(adapter_id=identity, digest=str(record.digest), predictions=predictions, truncated=answer.truncated)
