"""What one service process works with, made once at start-up and given to the routes."""

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request
from redis import Redis

from metatrain.artifacts.artifact import Initialization
from metatrain.models.base import Base
from service.adapting.idempotency import IdempotencyKeys
from service.adapting.jobs import Jobs
from service.http.auth import Door, tenant
from service.http.meter import Meter
from service.http.metrics import Metrics
from service.http.streams import Streams
from service.predicting.predictor import Predictor
from service.settings import ServiceSettings
from worker.ledger.aliases import Aliases
from worker.ledger.records import Records
from worker.ledger.store import WeightStore


@dataclass(frozen=True)
class ServiceState:
    settings: ServiceSettings
    cache: Redis
    records: Records
    aliases: Aliases
    idempotency: IdempotencyKeys
    store: WeightStore
    jobs: Jobs
    base: Base
    initializations: dict[str, Initialization]
    predictor: Predictor
    metrics: Metrics
    door: Door
    meter: Meter
    streams: Streams


def state_of(request: Request) -> ServiceState:
    return cast(ServiceState, request.app.state.service)


State = Annotated[ServiceState, Depends(state_of)]
Tenant = Annotated[str, Depends(tenant)]
