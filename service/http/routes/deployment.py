"""`GET /initializations`, `/metrics`, `/healthz`, `/readyz`: describe the deployment and its health."""

import redis
from fastapi import APIRouter, Depends, Response
from prometheus_client import generate_latest

from metatrain.inner.config import InnerConfig, Objective
from service.errors import NotReady
from service.http.auth import needs
from service.http.deployment_schemas import Alive, InitializationList, InitializationView, InPartsView, Missing, Readiness
from service.http.openapi import ROUTE_ERRORS, problems
from service.http.state import State

router = APIRouter(tags=["deployment"])
_METRIC = "quickstudy_workers 1.0"


@router.get("/initializations", dependencies=[Depends(needs("read"))], responses=problems(*ROUTE_ERRORS))
def initializations(state: State) -> InitializationList:
    """List the initializations that this deployment can adapt from, sorted by name."""
    views = [
        InitializationView(
            name=name,
            digest=init.digest,
            base_model=deployed.base.spec.model,
            delta=init.delta.model_dump(mode="json"),
            algorithm=init.algorithm,
            steps=init.inner.steps,
            steps_by_shots=init.inner.steps_by_shots,
            hard_steps=init.inner.hard_steps.model_dump() if init.inner.hard_steps else None,
            optimizer=init.inner.optimizer,
            objective=_objective_weights(init.inner.objective),
            in_parts=_in_parts(init.inner),
            temperature=1.0 / init.scale,
            max_length=init.base.max_length,
        )
        for deployed in state.deployed
        for name, init in state.named(deployed).items()
    ]
    return InitializationList(initializations=sorted(views, key=lambda view: view.name))


def _in_parts(inner: InnerConfig) -> InPartsView | None:
    if inner.in_parts is None:
        return None
    return InPartsView(
        more_than=inner.rows_per_step, objective=_objective_weights(inner.in_parts.objective), most=inner.in_parts.most
    )


def _objective_weights(objective: Objective) -> dict[str, float]:
    return {str(name): weight for name, weight in objective.items()}


@router.get(
    "/metrics",
    response_class=Response,
    dependencies=[Depends(needs("metrics"))],
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}, "example": _METRIC}}}, **problems(*ROUTE_ERRORS)},
)
def metrics(state: State) -> Response:
    """Return the metrics in the Prometheus text format."""
    return Response(generate_latest(state.metrics.registry), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/healthz")
async def healthz() -> Alive:
    """Answer 200 as long as the process is alive."""
    return Alive(status="alive")


@router.get("/readyz", responses=problems(NotReady))
def readyz(state: State) -> Readiness:
    """Answer 200 if the service can take traffic, otherwise 503 with the parts that are `missing`."""
    missing: list[Missing] = []
    lacking: list[str] = []
    try:
        workers = state.records.workers.by_queue()
        if not all(workers.get(queue) for deployed in state.deployed for queue in deployed.resident.queues):
            missing.append("worker")
        lacking = sorted(state.records.initializations.lacking().keys() - set(state.known.digests))
    except redis.RedisError:
        missing.append("redis")
    try:
        state.cache.ping()
    except redis.RedisError:
        missing.append("cache")
    if not all(deployed.predictor.alive() for deployed in state.deployed):
        missing.append("predictor")
    if missing:
        raise NotReady(f"missing: {', '.join(missing)}", missing=missing)
    return Readiness(status="ready", missing=[], initializations_missing=lacking)
