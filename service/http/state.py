"""The state of one service process, created once at start-up and passed to the routes."""

import contextlib
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request
from redis import Redis

from metatrain.artifacts.initialization import Initialization
from metatrain.errors import MetatrainError
from metatrain.models.description import BaseDescription
from service.adapting.jobs import Jobs
from service.errors import AdapterNotReady, InvalidRequest
from service.http.auth import Authenticator, tenant
from service.http.body_budget import BodyBudget
from service.http.key_uses import KeyUseRecorder
from service.http.meter import Meter
from service.http.metrics import Metrics
from service.http.server_checks import ServerChecks
from service.http.streams import Streams
from service.http.tenant_threads import TenantThreads
from service.http.tenants import CachedTenants
from service.http.work_pool import WorkPool
from service.predicting.interface import Predictor
from service.settings import ServiceSettings
from worker.initializations import KnownInitializations, base_identity
from worker.kinds.kind import TaskKind
from worker.kinds.registry import task_kinds
from worker.ledger.aliases import Aliases
from worker.ledger.audit import AuditLog
from worker.ledger.messages import RecipeSummary
from worker.ledger.record import Record
from worker.ledger.records import Records
from worker.ledger.weights_cache import WeightStore
from worker.runtime import Resident


@dataclass(frozen=True)
class Deployed:
    """One base model of this deployment: its initializations, its job queue and its predictor."""

    resident: Resident[BaseDescription]
    predictor: Predictor

    @property
    def base(self) -> BaseDescription:
        return self.resident.base

    @property
    def initializations(self) -> dict[str, Initialization]:
        return self.resident.initializations

    def queue(self, job: RecipeSummary) -> str:
        """Return the queue of a job on this base model."""
        return self.resident.queue(job.kind, job.job_format)


@dataclass(frozen=True)
class ServiceState:
    """Everything that the routes use. `deployed` has the base models in the order of BASE_MODEL."""

    settings: ServiceSettings
    cache: Redis
    records: Records
    aliases: Aliases
    store: WeightStore
    jobs: Jobs
    deployed: tuple[Deployed, ...]
    metrics: Metrics
    server_checks: ServerChecks
    authenticator: Authenticator
    key_uses: KeyUseRecorder
    tenants: CachedTenants
    audit: AuditLog
    meter: Meter
    streams: Streams
    body_budget: BodyBudget
    work: WorkPool
    threads: TenantThreads
    known: KnownInitializations[BaseDescription]

    def initialization(self, name: str, kind: TaskKind, base_model: str | None = None) -> tuple[Deployed, Initialization]:
        """Find the initialization with this name for tasks of `kind`, and the first base model that has it.

        If `base_model` is given, only its initializations are searched. A pointer that was set for the name comes first, then the
        loaded initialization of that name. The name `default` selects an initialization of that name if there is one, otherwise
        `kind.default`. Reads from Redis. Raises InvalidRequest if this deployment has no such base model or initialization.
        """
        candidates = [deployed for deployed in self.deployed if base_model in (None, deployed.base.spec.model)]
        if not candidates:
            models = ", ".join(deployed.base.spec.model for deployed in self.deployed)
            raise InvalidRequest("base_model", f"one of {models}", base_model)
        for candidate_name in dict.fromkeys((name, kind.default if name == "default" else name)):
            for deployed in candidates:
                init = self._pointed_at(deployed, candidate_name) or deployed.initializations.get(candidate_name)
                if init is not None and init.readout == kind.readout:
                    return deployed, init
        available = {name for each in candidates for name, init in self.named(each).items() if init.readout == kind.readout}
        expected = f"one of {', '.join(sorted(available))}"
        if name == "default":  # what a request asks for that names none
            expected += " (none is trained for this base model and named default; `metatrain train` makes one)"
        raise InvalidRequest("initialization", expected, name)

    def _pointed_at(self, deployed: Deployed, name: str) -> Initialization | None:
        """Return the initialization that a pointer gives to a name, or None if the name has no pointer.

        Reads from Redis. Raises InvalidRequest if the initialization cannot be used; the loaded one never stands in for it.
        """
        digest = self.records.initializations.pointer(base_identity(deployed.base), name)
        return None if digest is None else self._usable(digest, name)

    def _usable(self, digest: str, name: str) -> Initialization:
        """Return the initialization with this digest under another name.

        Raises InvalidRequest if it cannot be used.
        """
        try:
            found = self.known.find(digest)
        except MetatrainError as error:
            raise InvalidRequest("initialization", f"a usable one (stored as {digest[:12]}…: {error})", name) from error
        if found is None:
            raise InvalidRequest("initialization", f"a stored one ({digest[:12]}… is gone)", name)
        return self.known.renamed(digest, name)

    def named(self, deployed: Deployed) -> dict[str, Initialization]:
        """Return the initializations of a base model by name.

        If a pointer was set for a name, the name means the initialization that it points at; a name whose pointer cannot be used is
        left out. Reads from Redis.
        """
        identity, named = base_identity(deployed.base), dict(deployed.initializations)
        for (base, name), digest in self.records.initializations.pointers().items():
            if base == identity:
                named.pop(name, None)
                with contextlib.suppress(InvalidRequest):
                    named[name] = self._usable(digest, name)
        return named

    def initialization_of(self, record: Record) -> tuple[Deployed, Initialization]:
        """Return the base model of an adapter, and the initialization that the adapter was made from.

        If that initialization is neither loaded nor stored, return the one that now has its name on the same base model. May read
        it from Redis. Raises AdapterNotReady if this deployment does not have the base model, and InvalidRequest if it has neither
        initialization.
        """
        deployed, recipe = self.require_deployed(record), record.summary
        try:
            found = self.known.find(recipe.initialization_digest)
        except MetatrainError as error:
            reason = f"its stored initialization cannot be used: {error}"
            raise AdapterNotReady(f"adapter {record.adapter_id}: {reason}", adapter_status=record.status) from error
        if found is not None and found[0] is deployed.base:
            return deployed, found[1]
        fitting = [init for init in deployed.initializations.values() if init.readout == task_kinds()[recipe.kind].readout]
        for init in fitting:
            if init.name == recipe.initialization:
                return deployed, init
        raise InvalidRequest("initialization", f"one of {', '.join(sorted(init.name for init in fitting))}", recipe.initialization)

    def deployed_for(self, record: Record) -> Deployed | None:
        """Return the base model that an adapter was made on, or None if this service does not have it.

        The record's queue name identifies the base model. Queue names of earlier versions do so only in part. For these, return the
        base model that has the adapter's initialization and precision, or else the one that had this queue name earlier.
        """
        for deployed in self.deployed:
            if record.queue in deployed.resident.readable_queues:
                return deployed
        for deployed in self.deployed:
            digests = (init.digest for init in deployed.initializations.values())
            if deployed.base.precision == record.summary.precision and record.summary.initialization_digest in digests:
                return deployed
        return next((deployed for deployed in self.deployed if record.queue in deployed.resident.earlier_queues), None)

    def require_deployed(self, record: Record) -> Deployed:
        """Return the base model that an adapter was made on.

        Raises AdapterNotReady if this service does not have it.
        """
        deployed = self.deployed_for(record)
        if deployed is None:
            digest = record.summary.initialization_digest
            reason = f"this service has neither its base model nor its initialization, with digest {digest[:12]}…"
            raise AdapterNotReady(f"this service cannot use adapter {record.adapter_id}: {reason}", adapter_status=record.status)
        return deployed


async def state_of(request: Request) -> ServiceState:
    # Asynchronous, because FastAPI would run a plain function in a thread that all requests share.
    return cast(ServiceState, request.app.state.service)


State = Annotated[ServiceState, Depends(state_of)]
Tenant = Annotated[str, Depends(tenant)]
