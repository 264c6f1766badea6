"""A Python client of the service, for asyncio and without. Needs httpx alone.

One call is a value (`calls`), its answer another (`answers`); what takes several steps is a generator that does none of them
(`multi_step`, `events`, `retries`); two clients do the steps (`blocking`, `asynchronous`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
_MODULES = ("answers", "asynchronous", "blocking", "errors", "events")

if not TYPE_CHECKING:  # a type checker takes the imports above

    def __getattr__(name: str) -> Any:
        """Import what is asked for when it is first asked for: httpx takes 0.1 s, which `quickstudy --help` must not wait for."""
        if name in __all__:
            modules = (import_module(f"{__name__}.{module}") for module in _MODULES)
            globals()[name] = next(vars(module)[name] for module in modules if name in vars(module))
            return globals()[name]
        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
