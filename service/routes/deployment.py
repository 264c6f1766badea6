"""`GET /initializations`, `/metrics`, `/healthz`, `/readyz`: what this deployment has, and whether it can take traffic."""

import redis
from fastapi import APIRouter, Depends, Response
from prometheus_client import generate_latest

from service.auth import access, needs
from service.schemas import InitializationList, InitializationView
from service.state import State

router = APIRouter(tags=["deployment"])


@router.get("/initializations", dependencies=[Depends(access)])
def initializations(state: State) -> InitializationList:
    """What this deployment can adapt from."""
    views = [
        InitializationView(
            name=init.name,
            digest=init.digest,
            base_model=init.base.model,
            delta=init.delta.model_dump(mode="json"),
            algorithm=init.algorithm,
            steps=init.inner.steps,
            steps_by_shots=init.inner.steps_by_shots,
            hard_steps=init.inner.hard_steps.model_dump() if init.inner.hard_steps else None,
            optimizer=init.inner.optimizer,
            objective={str(name): weight for name, weight in init.inner.objective.items()},
            temperature=1.0 / init.scale,
            max_length=init.base.max_length,
        )
        for init in state.initializations.values()
    ]
    return InitializationList(initializations=sorted(views, key=lambda view: view.name))


@router.get("/metrics", response_class=Response, dependencies=[Depends(needs("admin"))])
def metrics(state: State) -> Response:
    """Counts and times, for Prometheus."""
    return Response(generate_latest(state.metrics.registry), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process is alive."""
    return {"status": "alive"}


@router.get("/readyz", responses={503: {}})
def readyz(state: State, response: Response) -> dict[str, object]:
    """Ready to take traffic, or 503 with what is missing."""
    missing: list[str] = []
    try:
        if state.records.workers() == 0:
            missing.append("worker")
    except redis.RedisError:
        missing.append("redis")
    try:
        state.cache.ping()
    except redis.RedisError:
        missing.append("cache")
    if not state.predictor.alive():
        missing.append("predictor")
    if missing:
        response.status_code = 503
        response.headers["Retry-After"] = "2"
    return {"status": "ready" if not missing else "not ready", "missing": missing}
