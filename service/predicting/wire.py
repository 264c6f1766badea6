"""What a service and a predictor in a process of its own say to each other: one JSON document a line, over a Unix socket or TCP.

    service → predictor   {"about": …}                                        once, first: which base model's predictor is meant
                          {"call": N, "weights": {…}, "texts": […]}           · {"cancel": N} · {"forget": [tenant, digest]}
    predictor → service   {"about": …, "gauges": {…}}                         then, once; the gauges again each second
                          {"answer": N, …} · {"error": N, "kind": …, "message": …}

Failures cross as data. The link is not authenticated, as that to Redis is not: it belongs on a private network.
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
"""Longest line: a whole request's texts, or a whole answer, fits."""
FORMAT = 2
_ERRORS: dict[str, Callable[[str], Exception]] = {
    "WeightsMissing": WeightsMissing,
    "WeightsCorrupt": WeightsCorrupt,
    "ArtifactError": ArtifactError,
    "RedisError": redis.RedisError,
}


def about(base: Base) -> dict[str, Any]:
    """What both ends must agree on: how they speak, and the base model, for adapters of one mean nothing on another."""
    return {"format": FORMAT, "base": base.digest}


def line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def call(number: int, weights: WeightsKey, texts: list[str]) -> dict[str, Any]:
    return {"call": number, "weights": asdict(weights), "texts": texts}


def answer(number: int, found: Answer) -> dict[str, Any]:
    return {"answer": number, **asdict(found)}


def answer_of(document: dict[str, Any]) -> Answer:
    return Answer(tuple(document["labels"]), document["outputs"], document["truncated"], document["seconds"])


def error(number: int, problem: BaseException) -> dict[str, Any]:
    """Anything unexpected crosses as its type alone: its message may quote an input."""
    if isinstance(problem, Overloaded):
        return {"error": number, "kind": "Overloaded", "message": problem.detail, "retry_after": problem.headers["Retry-After"]}
    if isinstance(problem, Unavailable):
        return {"error": number, "kind": "Unavailable", "message": problem.detail}
    kind = known(problem)
    return {"error": number, "kind": kind or type(problem).__name__, "message": str(problem) if kind else ""}


def known(problem: BaseException) -> str | None:
    """The name by which an error crosses with its message; None for what nobody expects."""
    return next((name for name in _ERRORS if name in [each.__name__ for each in type(problem).__mro__]), None)


def error_of(document: dict[str, Any]) -> Exception:
    kind, message = document["kind"], document["message"]
    if kind == "Overloaded":
        return Overloaded(message, int(document["retry_after"]))
    if kind == "Unavailable":
        return Unavailable(message)
    return _ERRORS[kind](message) if kind in _ERRORS else Unavailable(f"the predictor failed: {kind}; its log has the reason")
