"""`GET /initializations`, `/metrics`, `/healthz`, `/readyz`: what this deployment has, and whether it can take traffic."""

import redis
from fastapi import APIRouter, Depends, Response
from prometheus_client import generate_latest

from metatrain.inner.config import InnerConfig, Objective
from service.errors import NotReady
from service.http.auth import access, needs
from service.http.deployment_schemas import Alive, InitializationList, InitializationView, InPartsView, Missing, Readiness
from service.http.openapi import OF_ANY_ROUTE, problems
from service.http.state import State

router = APIRouter(tags=["deployment"])
_METRIC = "quickstudy_workers 1.0"


@router.get("/initializations", dependencies=[Depends(access)], responses=problems(*OF_ANY_ROUTE))
def initializations(state: State) -> InitializationList:
    """What this deployment can adapt from."""
    views = [
        InitializationView(
            name=init.name,
            digest=init.digest,
            base_model=own.base.spec.model,
            delta=init.delta.model_dump(mode="json"),
            algorithm=init.algorithm,
            steps=init.inner.steps,
            steps_by_shots=init.inner.steps_by_shots,
            hard_steps=init.inner.hard_steps.model_dump() if init.inner.hard_steps else None,
            optimizer=init.inner.optimizer,
            objective=_mixture(init.inner.objective),
            in_parts=_in_parts(init.inner),
            temperature=1.0 / init.scale,
            max_length=init.base.max_length,
        )
        for own in state.deployed
        for init in own.initializations.values()
    ]
    return InitializationList(initializations=sorted(views, key=lambda view: view.name))


def _in_parts(inner: InnerConfig) -> InPartsView | None:
    if inner.in_parts is None:
        return None
    return InPartsView(more_than=inner.rows_per_step, objective=_mixture(inner.in_parts.objective), most=inner.in_parts.most)


def _mixture(objective: Objective) -> dict[str, float]:
    return {str(name): weight for name, weight in objective.items()}


@router.get(
    "/metrics",
    response_class=Response,
    dependencies=[Depends(needs("admin"))],
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}, "example": _METRIC}}}, **problems(*OF_ANY_ROUTE)},
)
def metrics(state: State) -> Response:
    """Counts and times, for Prometheus."""
    return Response(generate_latest(state.metrics.registry), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/healthz")
async def healthz() -> Alive:
    """The process is alive."""
    return Alive(status="alive")


@router.get("/readyz", responses=problems(NotReady))
def readyz(state: State) -> Readiness:
    """Ready to take traffic, or 503 with what is `missing`."""
    missing: list[Missing] = []
    try:
        workers = state.records.workers.by_queue()
        if not all(workers.get(own.queue) for own in state.deployed):
            missing.append("worker")  # of one of the base models, in its precision
    except redis.RedisError:
        missing.append("redis")
    try:
        state.cache.ping()
    except redis.RedisError:
        missing.append("cache")
    if not all(own.predictor.alive() for own in state.deployed):
        missing.append("predictor")
    if missing:
        raise NotReady(f"missing: {', '.join(missing)}", missing=missing)
    return Readiness(status="ready", missing=[])
