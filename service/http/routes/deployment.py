"""`GET /initializations`, `/metrics`, `/healthz`, `/readyz`: describe the deployment and its health."""

from fastapi import APIRouter, Depends, Response
from prometheus_client import generate_latest

from metatrain.inner.config import InnerConfig, Objective
from service.errors import NotReady, PredictorHangs
from service.http.auth import needs
from service.http.deployment_schemas import Alive, InitializationList, InitializationView, InPartsView, Readiness
from service.http.openapi import ROUTE_ERRORS, problems
from service.http.route import TenantRoute
from service.http.state import Deployed, State
from service.predicting.interface import BATCH_AGE

router = APIRouter(route_class=TenantRoute, tags=["deployment"])
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


@router.get("/healthz", responses=problems(PredictorHangs))
async def healthz(state: State) -> Alive:
    """Answer 200 unless the process must be restarted, because a predictor in it hangs.

    It does not depend on Redis, on workers or on a predictor in another process: restarting this one would not help them.
    """
    if any(deployed.predictor.needs_restart() for deployed in state.deployed):
        raise PredictorHangs(_hanging(state))
    return Alive(status="alive")


def _hanging(state: State) -> str:
    return f"no batch of predictions has ended for {max(map(_age, state.deployed)):.0f} s, although calls wait"


def _age(deployed: Deployed) -> float:
    """Return the seconds since the last batch of a predictor ended while calls wait for it."""
    return deployed.predictor.gauges().get(BATCH_AGE, 0.0)


@router.get("/readyz", responses=problems(NotReady))
async def readyz(state: State) -> Readiness:
    """Answer 200 if the service can take traffic, otherwise 503 with the parts that are `missing`."""
    missing, lacking = await state.server_checks.found()
    if not all(deployed.predictor.alive() for deployed in state.deployed):
        missing.append("predictor")
    if missing:
        hanging = any(_age(deployed) > state.settings.predictor_hang_seconds for deployed in state.deployed)
        reason = f" ({_hanging(state)})" if hanging else ""
        raise NotReady(f"missing: {', '.join(missing)}{reason}", missing=missing)
    return Readiness(status="ready", missing=[], initializations_missing=lacking)
