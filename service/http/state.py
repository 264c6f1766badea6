"""What one service process works with, made once at start-up and given to the routes."""

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request
from redis import Redis

from metatrain.artifacts.initialization import Initialization
from metatrain.models.base import Base
from service.adapting.idempotency import IdempotencyKeys
from service.adapting.jobs import Jobs
from service.errors import InvalidRequest
from service.http.auth import Door, tenant
from service.http.meter import Meter
from service.http.metrics import Metrics
from service.http.streams import Streams
from service.predicting.predictor import Predictor
from service.settings import ServiceSettings
from worker.kinds.kind import TaskKind
from worker.ledger.aliases import Aliases
from worker.ledger.messages import JobRecipe
from worker.ledger.record import Record
from worker.ledger.records import Records
from worker.ledger.weights_cache import WeightStore
from worker.runtime import Resident


@dataclass(frozen=True)
class Deployed:
    """One base model of this deployment: its initializations, the queue of its jobs, and what predicts on it."""

    resident: Resident
    predictor: Predictor

    @property
    def base(self) -> Base:
        return self.resident.base

    @property
    def initializations(self) -> dict[str, Initialization]:
        return self.resident.initializations

    @property
    def queue(self) -> str:
        return self.resident.queue


@dataclass(frozen=True)
class ServiceState:
    """`deployed`: in the order of BASE_MODEL."""

    settings: ServiceSettings
    cache: Redis
    records: Records
    aliases: Aliases
    idempotency: IdempotencyKeys
    store: WeightStore
    jobs: Jobs
    deployed: tuple[Deployed, ...]
    metrics: Metrics
    door: Door
    meter: Meter
    streams: Streams

    def initialization(self, name: str, kind: TaskKind, base_model: str | None = None) -> tuple[Deployed, Initialization]:
        """The first base model that has an initialization of this name for tasks of this kind, or that base model's. `default`: the
        kind's own default where no initialization has that name. Raises InvalidRequest for what this deployment does not have."""
        among = [own for own in self.deployed if base_model in (None, own.base.spec.model)]
        if not among:
            raise InvalidRequest("base_model", f"one of {', '.join(own.base.spec.model for own in self.deployed)}", base_model)
        known: set[str] = set()
        for wanted in dict.fromkeys((name, kind.default if name == "default" else name)):
            for own in among:
                fitting = {key: init for key, init in own.initializations.items() if init.readout == kind.readout}
                known |= fitting.keys()
                if wanted in fitting:
                    return own, fitting[wanted]
        raise InvalidRequest("initialization", f"one of {', '.join(sorted(known))}", name)

    def initialization_of(self, recipe: JobRecipe) -> tuple[Deployed, Initialization]:
        """What an adapter was made from, or what has its name now. Raises InvalidRequest where there is neither."""
        among = [(own, init) for own in self.deployed for init in own.initializations.values()]
        for own, init in among:
            if init.digest == recipe.initialization_digest and own.base.precision == recipe.precision:
                return own, init
        for own, init in among:
            if init.name == recipe.initialization:
                return own, init
        names = sorted({init.name for _, init in among})
        raise InvalidRequest("initialization", f"one of {', '.join(names)}", recipe.initialization)

    def of_record(self, record: Record) -> Deployed | None:
        """Return the base model that an adapter was made on, None if this service does not have it.

        The queue of its job names the base model; that of an earlier version did not, and the initialization tells instead.
        """
        for own in self.deployed:
            if record.queue == own.queue:
                return own
        for own in self.deployed:
            digests = (init.digest for init in own.initializations.values())
            if own.base.precision == record.summary.precision and record.summary.initialization_digest in digests:
                return own
        return None


def state_of(request: Request) -> ServiceState:
    return cast(ServiceState, request.app.state.service)


State = Annotated[ServiceState, Depends(state_of)]
Tenant = Annotated[str, Depends(tenant)]
