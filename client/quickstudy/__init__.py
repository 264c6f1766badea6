"""The Python client of Quickstudy: the blocking `Client`, and `AsyncClient` for asyncio.

The package needs only httpx. The modules `calls` and `answers` build requests and read responses, as plain values. `multi_step`,
`events` and `retries` contain the logic of methods that send several requests, without I/O. `blocking` and `asynchronous` are the
two clients, which do the I/O.

Example::

    from quickstudy import Client

    with Client("http://localhost:8000") as quickstudy:
        adapter = quickstudy.adapt([("When is breakfast?", "dining"), ("The wifi is down", "wifi")])
        for prediction in quickstudy.predict(adapter, ["until when can I eat?", "no internet in my room"]):
            print(prediction.label, prediction.probability)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quickstudy.answers import (
        Adaptation,
        Adapter,
        Alias,
        AliasDetail,
        AliasEntry,
        AliasMove,
        AuditEntry,
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
    "AliasDetail",
    "AliasEntry",
    "AliasMove",
    "AsyncClient",
    "AuditEntry",
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

if not TYPE_CHECKING:  # type checkers read the imports above

    def __getattr__(name: str) -> Any:
        """Import an exported name on first use. So `quickstudy --help` saves the 0.1 s to import httpx."""
        if name in __all__:
            modules = (import_module(f"{__name__}.{module}") for module in _MODULES)
            globals()[name] = next(vars(module)[name] for module in modules if name in vars(module))
            return globals()[name]
        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
