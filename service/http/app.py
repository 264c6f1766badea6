"""The FastAPI application."""

import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import redis
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from kombu.exceptions import OperationalError
from starlette.exceptions import HTTPException

from metatrain.artifacts.adapter import adapter_bytes_at_most
from service.adapting.idempotency import IdempotencyKeys
from service.adapting.jobs import Jobs
from service.errors import InvalidRequest, MethodNotAllowed, QuotaExceeded, ServiceError, Unavailable, UnknownPath, problem
from service.http.auth import Authentication, Door
from service.http.limits import BodyLimit
from service.http.meter import Meter
from service.http.metrics import Metrics
from service.http.openapi import describe, operation_id
from service.http.requests import Requests
from service.http.routes import adaptation, adapters, aliases, deployment, events, predictions, scores, usage
from service.http.state import Deployed, ServiceState
from service.http.streams import Streams
from service.kinds.registry import example_type, http_kinds, prediction_type
from service.predicting.predictor import InProcessPredictor
from service.predicting.remote_predictor import RemotePredictor
from service.settings import ServiceSettings
from worker.app import celery_app
from worker.errors import LimitReached
from worker.ledger.aliases import Aliases
from worker.ledger.api_keys import Keys
from worker.ledger.messages import JobRecipe
from worker.ledger.records import Records
from worker.ledger.servers import records_client, weights_client
from worker.ledger.store import WeightStore
from worker.ledger.usage import Usage
from worker.runtime import Resident

log = logging.getLogger(__name__)


def create_app(settings: ServiceSettings, residents: Sequence[Resident]) -> FastAPI:
    """Make the application around loaded base models. Redis may come later, and go."""
    by_digest = {init.digest: (own, init) for own in residents for init in own.initializations.values()}

    def size_of(recipe: JobRecipe) -> int:
        own, init = by_digest[recipe.initialization_digest]
        return adapter_bytes_at_most(init, recipe.labels, own.base.hidden_size)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        client = records_client(settings.redis_url, connect_timeout=2)
        records = Records(client, settings.wait_replicas)
        cache = weights_client(settings.weights_url, connect_timeout=2)
        jobs = Jobs(records, celery_app(settings.redis_url, residents[0].queue), settings.redis_url, settings.limits, size_of)
        store = WeightStore(cache)
        deployed = tuple(Deployed(own, _predictor(own, store, settings, 1 / len(residents))) for own in residents)
        metrics = Metrics(records, [own.predictor for own in deployed])
        meter = Meter(Usage(client), settings.max_requests_a_minute)
        app.state.service = ServiceState(
            settings=settings,
            cache=cache,
            records=records,
            aliases=Aliases(client),
            idempotency=IdempotencyKeys(client),
            store=store,
            jobs=jobs,
            deployed=deployed,
            metrics=metrics,
            door=Door(Keys(client), open_allowed=settings.allow_without_keys),
            meter=meter,
            streams=Streams(settings.max_streams),
        )
        jobs.listen()
        meter.begin()
        yield
        await jobs.close()
        await meter.close()
        for own in deployed:
            own.predictor.close()

    app = FastAPI(
        title="Quickstudy",
        summary="Few-shot adaptation as a service",
        version="0.1.0",
        lifespan=lifespan,
        redirect_slashes=False,  # one path a resource
        generate_unique_id_function=operation_id,
    )
    app.include_router(adaptation.routes(example_type()))
    app.include_router(adapters.router)
    app.include_router(events.router)
    app.include_router(aliases.router)
    app.include_router(predictions.routes(prediction_type()))
    for module in (scores, usage, deployment):
        app.include_router(module.router)
    describe(app, settings, [name for own in residents for name in own.initializations])
    app.add_middleware(BodyLimit, most=settings.max_body_bytes)
    app.add_middleware(Authentication)
    app.add_middleware(Requests)
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(LimitReached, _limit_reached)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    for away in (redis.RedisError, OperationalError):
        app.add_exception_handler(away, _redis_error)
    return app


def _predictor(own: Resident, store: WeightStore, settings: ServiceSettings, share: float) -> RemotePredictor | InProcessPredictor:
    if settings.predictor_url is not None:
        return RemotePredictor(own.base, settings.predictor_url)
    return InProcessPredictor(own.base, own.initializations, store, settings, share=share)


async def _service_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    return problem(error)


async def _limit_reached(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LimitReached)
    return problem(QuotaExceeded(error))


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    """The first problem of a body or query, as a field path like `support[3].label`."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    loc = [part for part in first["loc"][1:] if part not in http_kinds()]  # of an example that is one of several kinds
    path = [_printable(part) if isinstance(part, str) else f"[{part}]" for part in loc]
    field = re.sub(r"\.\[", "[", ".".join(path)) or "body"
    if first["type"] == "json_invalid":
        detail = first.get("ctx", {}).get("error", "malformed JSON")
        return problem(InvalidRequest("body", "valid JSON", f"{detail} at character {first['loc'][-1]}"))
    if not path and isinstance(first["input"], bytes):
        return problem(InvalidRequest("Content-Type", "application/json", request.headers.get("content-type", "nothing")))
    expected = {"missing": "a value", "extra_forbidden": "no such field"}.get(first["type"], _lower_first(first["msg"]))
    return problem(InvalidRequest(field, expected, "nothing" if first["type"] == "missing" else first["input"]))


def _printable(name: str) -> str:
    """A field's name comes from outside: it may be long, or no text that can be encoded."""
    shown = name.encode("utf-8", "backslashreplace").decode()
    return shown if len(shown) <= 80 else shown[:77] + "…"


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    """What the framework raises by itself."""
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path
    if error.status_code == 404:
        return problem(UnknownPath(f"nothing is at {path}"))
    if error.status_code == 405:
        return problem(MethodNotAllowed(f"{path} takes no {method}", headers={"Allow": _allowed(request, error)}))
    if error.status_code == 400:  # a body that is no JSON in another way than syntax
        return problem(InvalidRequest("body", "valid JSON", "something that cannot be read"))
    wrapped = ServiceError(str(error.detail), headers=dict(error.headers or {}))
    wrapped.status, wrapped.title = error.status_code, str(error.detail)
    return problem(wrapped)


def _allowed(request: Request, error: HTTPException) -> str:
    """All methods of the path: the framework names those of one route."""
    documented = request.app.openapi()["paths"].get(getattr(request.scope.get("route"), "path_format", ""))
    if documented is None:
        return (error.headers or {}).get("Allow", "")
    return ", ".join(sorted(method.upper() for method in documented))


async def _redis_error(request: Request, error: Exception) -> JSONResponse:
    log.warning("%s %s: Redis is out of reach: %s", request.method, request.url.path, type(error).__name__)
    return problem(Unavailable("the queue or the cache is out of reach"))


def _lower_first(message: str) -> str:
    message = message.removeprefix("Input should be ").removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
