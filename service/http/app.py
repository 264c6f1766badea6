"""Create the FastAPI application and everything that its routes use."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI

from metatrain.artifacts.adapter import adapter_bytes_at_most
from metatrain.models.base import Base
from metatrain.models.description import BaseDescription
from service.adapting.jobs import Jobs
from service.http import docs_page
from service.http.auth import Authentication, Authenticator
from service.http.body_budget import BodyBudget
from service.http.body_limit import BodyLimit
from service.http.body_time import BodyTime
from service.http.drain import Drain
from service.http.failed_keys import FailedKeys
from service.http.hosts import AllowedHosts
from service.http.key_uses import KeyUseRecorder
from service.http.meter import Meter
from service.http.metrics import Metrics
from service.http.openapi import describe, operation_id
from service.http.problems import answer_errors_with_problems
from service.http.requests import Requests
from service.http.routes import adaptation, adapters, aliases, audit, deployment, events, predictions, scores, usage
from service.http.server_checks import ServerChecks
from service.http.state import Deployed, ServiceState
from service.http.streams import Streams
from service.http.tenant_threads import TenantThreads
from service.http.tenants import CachedTenants
from service.http.work_pool import WorkPool
from service.kinds.registry import example_type, prediction_type
from service.predicting.predictor import InProcessPredictor
from service.predicting.remote_predictor import RemotePredictor
from service.settings import ServiceSettings
from worker.app import celery_app
from worker.ledger.aliases import Aliases
from worker.ledger.api_keys import Keys
from worker.ledger.audit import AuditLog
from worker.ledger.breaker import breaker_of
from worker.ledger.key_uses import KeyUses
from worker.ledger.messages import JobRecipe
from worker.ledger.records import Records
from worker.ledger.servers import service_client
from worker.ledger.tenants import Tenants
from worker.ledger.usage import Usage
from worker.ledger.weights_cache import WeightStore
from worker.runtime import Resident, known_initializations

log = logging.getLogger(__name__)


def create_app(settings: ServiceSettings, residents: Sequence[Resident[BaseDescription]]) -> FastAPI:
    """Create the application for these base models.

    They are loaded or, with PREDICTOR_URL, only described. Redis need not be reachable: while it is not, requests that need it get
    a 503.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        state = app.state.service = _state(settings, residents)
        state.jobs.listen()
        writes = (state.meter.writes, state.key_uses.writes)
        for each in writes:
            each.start()
        try:
            yield
            await state.jobs.close()
            await asyncio.gather(*[each.close() for each in writes])  # all may wait for records that do not answer
        finally:
            state.work.close()
            for deployed in state.deployed:
                deployed.predictor.close()

    app = FastAPI(
        title="Quickstudy",
        summary="Few-shot adaptation as a service",
        version="0.1.0",
        lifespan=lifespan,
        openapi_url=None,  # docs_page has both
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a resource has exactly one path
        generate_unique_id_function=operation_id,
    )
    app.include_router(adaptation.routes(example_type()))
    app.include_router(adapters.router)
    app.include_router(events.router)
    app.include_router(aliases.router)
    app.include_router(predictions.routes(prediction_type()))
    for module in (scores, usage, audit, deployment):
        app.include_router(module.router)
    app.include_router(docs_page.routes(lambda: app.openapi()))
    describe(app, settings, [name for resident in residents for name in resident.initializations])
    app.add_middleware(BodyLimit, most=settings.max_body_bytes)
    app.add_middleware(BodyTime, longest=settings.body_seconds)
    failed_keys = FailedKeys(settings.failed_key_delay_seconds)
    app.add_middleware(Authentication, failed_keys=failed_keys, any_host=settings.host_names is not None)
    if settings.host_names is not None and "*" not in settings.host_names:
        app.add_middleware(AllowedHosts, names=settings.host_names)
    app.state.drain = Drain()
    app.add_middleware(Requests, drain=app.state.drain)
    answer_errors_with_problems(app)
    return app


def _state(settings: ServiceSettings, residents: Sequence[Resident[BaseDescription]]) -> ServiceState:
    """Create everything that the routes use. Nothing connects to Redis yet."""
    client = service_client(settings.redis_url)
    cipher = settings.cipher
    records = Records(client, settings.wait_replicas, cipher)
    cache = client if settings.weights_url == settings.redis_url else service_client(settings.weights_url)
    store = WeightStore(cache, cipher)
    stored, share = records.initializations.get, 1 / len(residents)
    deployed = tuple(Deployed(resident, _predictor(resident, store, stored, settings, share)) for resident in residents)
    known = known_initializations(residents, stored)  # not probed: workers and predictors do that

    def size_of(recipe: JobRecipe) -> int:
        found = known.find(recipe.initialization_digest)
        assert found is not None, "a checked request has a known initialization"
        base, init = found
        return adapter_bytes_at_most(init, recipe.labels, base.feature_size)

    tenants = CachedTenants(Tenants(client), settings.limits)
    return ServiceState(
        settings=settings,
        cache=cache,
        records=records,
        aliases=Aliases(client),
        store=store,
        jobs=Jobs(
            records,
            celery_app(settings.redis_url, residents[0].queues[0], of_service=True),
            settings.redis_url,
            tenants.limits_of,
            size_of,
            known,
            breaker_of(client),
        ),
        deployed=deployed,
        known=known,
        server_checks=ServerChecks(records, cache, residents, known),
        metrics=Metrics(records, [each.predictor for each in deployed]),
        authenticator=Authenticator(Keys(client), open_allowed=settings.allow_without_keys),
        key_uses=KeyUseRecorder(KeyUses(client)),
        tenants=tenants,
        audit=AuditLog(client),
        meter=Meter(Usage(client), tenants.limits_of),
        streams=Streams(tenants.limits_of),
        body_budget=BodyBudget(settings.max_bodies_bytes, tenants.limits_of),
        work=WorkPool(),
        threads=TenantThreads(),
    )


def _predictor(
    resident: Resident[BaseDescription],
    store: WeightStore,
    stored: Callable[[str], bytes | None],
    settings: ServiceSettings,
    share: float,
) -> RemotePredictor | InProcessPredictor:
    if settings.predictor_url is not None:
        return RemotePredictor(resident.base, settings.predictor_url, settings.predictor_hang_seconds)
    assert isinstance(resident.base, Base), "expected loaded base models, because PREDICTOR_URL is unset"
    return InProcessPredictor(resident.base, resident.initializations, store, settings, stored=stored, share=share)
