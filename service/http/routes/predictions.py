"""`POST /predict`."""

from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from service.errors import AdapterNotReady, Overloaded, UnknownAdapter
from service.field_checks import check_inputs
from service.http.auth import needs
from service.http.openapi import OF_A_BODY, OF_ANY_ROUTE, problems
from service.http.schemas import PredictAnswer, PredictRequest, concrete
from service.http.state import ServiceState, State, Tenant
from service.kinds.registry import http_kinds
from service.predicting.answering import answered
from worker.ledger.aliases import is_adapter_id


def routes(prediction: Any) -> APIRouter:
    """The routes for answers with predictions of this type."""
    predict_answer: type[PredictAnswer[Any]] = concrete(PredictAnswer, prediction)
    router = APIRouter(tags=["predictions"], dependencies=[Depends(needs("predict"))])

    @router.post(
        "/predict",
        response_model=predict_answer,
        responses=problems(*OF_ANY_ROUTE, *OF_A_BODY, UnknownAdapter, AdapterNotReady, Overloaded),
    )
    async def predict(
        request: PredictRequest, connection: Request, response: Response, state: State, tenant: Tenant
    ) -> PredictAnswer[Any]:
        """Label inputs with an adapter. Never answers with the bare base model in an adapter's place. The answer's `Server-Timing`
        has the milliseconds of each stage."""
        check_inputs(request.inputs, state.settings)
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
        kind = http_kinds().get(record.summary.kind)
        if kind is None:
            reason = f"tasks of kind {record.summary.kind!r} are not known to this service: is their package installed?"
            raise AdapterNotReady(f"adapter {record.adapter_id}: {reason}", adapter_status="ready")
        response.headers["Server-Timing"] = ", ".join(f"{stage};dur={1e3 * s:.2f}" for stage, s in answer.seconds.items())
        return predict_answer(
            adapter_id=record.adapter_id,
            alias=alias,
            digest=str(record.digest),
            predictions=kind.predictions(answer, request.top_k),
            truncated=answer.truncated,
        )

    return router


def _target(alias: str, state: ServiceState, tenant: str) -> str:
    found = state.aliases.get(tenant, alias)
    if found is None:
        raise UnknownAdapter(alias, "no adapter and no alias {}")
    return found.adapter_id
