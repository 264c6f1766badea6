"""What one service process works with, made once at start-up and given to the routes."""

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request
from redis import Redis

from metatrain.artifact import Initialization
from metatrain.base.text import TextBase
from service.auth import Door, tenant
from service.idempotency import IdempotencyKeys
from service.jobs import Jobs
from service.meter import Meter
from service.metrics import Metrics
from service.predictor import Predictor
from service.settings import ServiceSettings
from service.streams import Streams
from worker.aliases import Aliases
from worker.records import Records
from worker.store import WeightStore


@dataclass(frozen=True)
class ServiceState:
    settings: ServiceSettings
    cache: Redis
    records: Records
    aliases: Aliases
    idempotency: IdempotencyKeys
    store: WeightStore
    jobs: Jobs
    base: TextBase
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
