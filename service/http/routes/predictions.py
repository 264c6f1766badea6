"""`POST /predict`: predict with an adapter."""

from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from service.errors import AdapterNotReady, InvalidRequest, UnknownAdapter
from service.field_checks import SEEN_TEXT, check_inputs
from service.http.auth import needs
from service.http.openapi import BODY_ERRORS, ROUTE_ERRORS, problems
from service.http.route import TenantRoute
from service.http.schemas import PredictAnswer, PredictRequest, concrete
from service.http.state import ServiceState, State, Tenant
from service.http.tenant_threads import in_thread
from service.kinds.registry import http_kinds
from service.predicting.answering import answer_parts
from worker.ledger.aliases import is_adapter_id


def routes(prediction: Any) -> APIRouter:
    """Return a router with `POST /predict`. `prediction` is the type of the prediction for one input."""
    predict_answer: type[PredictAnswer[Any]] = concrete(PredictAnswer, prediction)
    router = APIRouter(route_class=TenantRoute, tags=["predictions"], dependencies=[Depends(needs("predict"))])

    @router.post(
        "/predict",
        response_model=predict_answer,
        responses=problems(*ROUTE_ERRORS, *BODY_ERRORS, UnknownAdapter, AdapterNotReady),
    )
    async def predict(
        request: PredictRequest, connection: Request, response: Response, state: State, tenant: Tenant
    ) -> PredictAnswer[Any]:
        """Predict for each input with an adapter.

        The base model without the adapter is never used instead. The answer's `Server-Timing` header has the milliseconds spent in
        each stage.
        """
        check_inputs(request.inputs, state.settings)
        alias = None if is_adapter_id(request.adapter_id) else request.adapter_id
        identity = request.adapter_id if alias is None else await in_thread(_adapter_of_alias, alias, state, tenant)
        try:
            record, [answer] = await answer_parts(identity, [request.inputs], connection, state, tenant)
        except UnknownAdapter:
            # After the alias was read, it may have been moved to another adapter, and the previous adapter may have been deleted.
            moved_to = identity if alias is None else await in_thread(_adapter_of_alias, alias, state, tenant)
            if moved_to == identity:
                raise
            record, [answer] = await answer_parts(moved_to, [request.inputs], connection, state, tenant)
        kind = http_kinds().get(record.summary.kind)
        if kind is None:
            reason = f"this service does not know tasks of kind {record.summary.kind!r}; install the package that adds them"
            raise AdapterNotReady(f"adapter {record.adapter_id}: {reason}", adapter_status="ready")
        if answer.empty:
            raise InvalidRequest(f"inputs[{answer.empty[0]}]", SEEN_TEXT, request.inputs[answer.empty[0]])
        response.headers["Server-Timing"] = ", ".join(f"{stage};dur={1e3 * s:.2f}" for stage, s in answer.seconds.items())
        return predict_answer(
            adapter_id=record.adapter_id,
            alias=alias,
            digest=str(record.digest),
            predictions=kind.predictions(answer, request.top_k),
            truncated=answer.truncated,
        )

    return router


def _adapter_of_alias(alias: str, state: ServiceState, tenant: str) -> str:
    found = state.aliases.get(tenant, alias)
    if found is None:
        raise UnknownAdapter(alias, "no adapter and no alias {}")
    return found.adapter_id
