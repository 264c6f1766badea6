"""`POST /predict`."""

from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from service.errors import AdapterNotReady, Overloaded, UnknownAdapter
from service.http.auth import needs
from service.http.limits import check_predict
from service.http.openapi import OF_A_BODY, OF_ANY_ROUTE, problems
from service.http.schemas import PredictAnswer, Prediction, PredictRequest
from service.http.state import ServiceState, State, Tenant
from service.predicting.answering import answered
from service.predicting.predictor import Answer
from worker.ledger.aliases import is_adapter_id
from worker.ledger.record import Record

router = APIRouter(tags=["predictions"], dependencies=[Depends(needs("predict"))])


@router.post("/predict", responses=problems(*OF_ANY_ROUTE, *OF_A_BODY, UnknownAdapter, AdapterNotReady, Overloaded))
async def predict(request: PredictRequest, connection: Request, response: Response, state: State, tenant: Tenant) -> PredictAnswer:
    """Label inputs with an adapter. Never answers with the bare base model in an adapter's place. The answer's `Server-Timing`
    has the milliseconds of each stage."""
    check_predict(request, state.settings)
    alias = None if is_adapter_id(request.adapter_id) else request.adapter_id
    identity = request.adapter_id if alias is None else await run_in_threadpool(_target, alias, state, tenant)
    try:
        record, [answer] = await answered(identity, [request.inputs], connection, state, tenant)
    except UnknownAdapter:
        # A deployment may have moved the alias, and deleted the adapter before, since the alias was read.
        now = identity if alias is None else await run_in_threadpool(_target, alias, state, tenant)
        if now == identity:
            raise
        record, [answer] = await answered(now, [request.inputs], connection, state, tenant)
    response.headers["Server-Timing"] = ", ".join(f"{stage};dur={1e3 * s:.2f}" for stage, s in answer.seconds.items())
    return _view(record, alias, answer, request.top_k)


def _target(alias: str, state: ServiceState, tenant: str) -> str:
    found = state.aliases.get(tenant, alias)
    if found is None:
        raise UnknownAdapter(f"no adapter and no alias {alias}")
    return found.adapter_id


def _view(record: Record, alias: str | None, answer: Answer, top_k: int | None) -> PredictAnswer:
    predictions = []
    for row, best in zip(answer.probabilities, answer.best, strict=True):
        columns = range(len(row)) if top_k is None else sorted(range(len(row)), key=row.__getitem__, reverse=True)[:top_k]
        predictions.append(Prediction(label=best, probabilities={answer.labels[column]: row[column] for column in columns}))
    return PredictAnswer(
        adapter_id=record.adapter_id, alias=alias, digest=str(record.digest), predictions=predictions, truncated=answer.truncated
    )
