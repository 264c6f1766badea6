"""The protocol of services and predictors: one JSON document per line, over a Unix socket or TCP.

    service → predictor   {"about": …}                                        first, once: selects the predictor of a base model
                          {"call": N, "weights": {…}, "texts": […]}           · {"cancel": N} · {"forget": [tenant, digest]}
    predictor → service   {"about": …, "gauges": {…}}                         in reply, once; then {"gauges": {…}} every second
                          {"answer": N, …} · {"error": N, "kind": …, "message": …}

Errors are sent as data. The connection is not authenticated, like the one to Redis: use it only on a private network.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import redis

from metatrain.errors import ArtifactError
from metatrain.models.base import Base
from service.errors import Overloaded, Unavailable
from service.predicting.predictor import Answer, WeightsKey
from worker.errors import WeightsCorrupt, WeightsMissing

LINE_BYTES = 64 * 2**20
"""Longest line in bytes: enough for all texts of a request, or for a whole answer."""
FORMAT = 2
_ERRORS: dict[str, Callable[[str], Exception]] = {
    "WeightsMissing": WeightsMissing,
    "WeightsCorrupt": WeightsCorrupt,
    "ArtifactError": ArtifactError,
    "RedisError": redis.RedisError,
}


def about(base: Base) -> dict[str, Any]:
    """Return what both sides must agree on: the version of the protocol and the base model.

    An adapter works only on the base model that it was made on.
    """
    return {"format": FORMAT, "base": base.digest}


def line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def call(number: int, weights: WeightsKey, texts: list[str]) -> dict[str, Any]:
    return {"call": number, "weights": asdict(weights), "texts": texts}


def answer(number: int, result: Answer) -> dict[str, Any]:
    return {"answer": number, **asdict(result)}


def answer_of(document: dict[str, Any]) -> Answer:
    return Answer(tuple(document["labels"]), document["outputs"], document["truncated"], document["seconds"])


def error(number: int, problem: BaseException) -> dict[str, Any]:
    """Return an error's document. An unexpected error is sent by type only: its text may quote an input."""
    if isinstance(problem, Overloaded):
        return {"error": number, "kind": "Overloaded", "message": problem.detail, "retry_after": problem.headers["Retry-After"]}
    if isinstance(problem, Unavailable):
        return {"error": number, "kind": "Unavailable", "message": problem.detail}
    kind = error_kind(problem)
    return {"error": number, "kind": kind or type(problem).__name__, "message": str(problem) if kind else ""}


def error_kind(problem: BaseException) -> str | None:
    """Return the name of an expected error type, which is sent with its text; None for other errors."""
    return next((name for name in _ERRORS if name in [each.__name__ for each in type(problem).__mro__]), None)


def error_of(document: dict[str, Any]) -> Exception:
    kind, message = document["kind"], document["message"]
    if kind == "Overloaded":
        return Overloaded(message, int(document["retry_after"]))
    if kind == "Unavailable":
        return Unavailable(message)
    return _ERRORS[kind](message) if kind in _ERRORS else Unavailable(f"the predictor failed: {kind}; its log has the reason")
