"""A Python client of the service, for asyncio and without. Needs httpx alone.

One call is a value (`calls`), its answer another (`answers`); what takes several steps is a generator that does none of them
(`flows`, `events`, `retries`); two clients do the steps (`blocking`, `asynchronous`).
"""

from service.client.answers import (
    Adaptation,
    Adapter,
    Alias,
    AliasMove,
    DryRun,
    Initialization,
    LabelScore,
    Notice,
    Prediction,
    Predictions,
    Readiness,
    Score,
    Status,
    Usage,
)
from service.client.asynchronous import AsyncClient
from service.client.blocking import Client
from service.client.errors import (
    Conflict,
    Invalid,
    NotFound,
    NotReady,
    NotUnderstood,
    OutOfReach,
    QuickstudyError,
    RateLimited,
    Unauthorised,
    Unavailable,
)
from service.client.events import EndEvent, Event, StatusEvent, StepEvent

__all__ = [
    "Adaptation",
    "Adapter",
    "Alias",
    "AliasMove",
    "AsyncClient",
    "Client",
    "Conflict",
    "DryRun",
    "EndEvent",
    "Event",
    "Initialization",
    "Invalid",
    "LabelScore",
    "NotFound",
    "NotReady",
    "NotUnderstood",
    "Notice",
    "OutOfReach",
    "Prediction",
    "Predictions",
    "QuickstudyError",
    "RateLimited",
    "Readiness",
    "Score",
    "Status",
    "StatusEvent",
    "StepEvent",
    "Unauthorised",
    "Unavailable",
    "Usage",
]
