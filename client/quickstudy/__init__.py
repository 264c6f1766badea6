"""A Python client of the service, for asyncio and without. Needs httpx alone.

One call is a value (`calls`), its answer another (`answers`); what takes several steps is a generator that does none of them
(`flows`, `events`, `retries`); two clients do the steps (`blocking`, `asynchronous`).
"""

from quickstudy.answers import (
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
from quickstudy.asynchronous import AsyncClient
from quickstudy.blocking import Client
from quickstudy.errors import (
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
from quickstudy.events import EndEvent, Event, StatusEvent, StepEvent

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
