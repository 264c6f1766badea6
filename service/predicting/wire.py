"""The protocol between services and predictor processes: lines of JSON over a Unix socket or TCP.

    service → predictor   {"about": …}                                        once, first: selects the predictor of a base model
                          {"call": N, "weights": {…}, "texts": […], "share": …}
                                                                              N numbers the calls of this connection
                          {"cancel": N}
                          {"forget": [tenant, digest]}
    predictor → service   {"about": …, "gauges": {…}, "stopping": …}          once, in reply to the first line
                          {"gauges": {…}, "stopping": …}                      every second; stopping: it refuses new calls
                          {"answer": N, …}                                    the answer to call N
                          {"error": N, "kind": …, "message": …}               the error of call N

The connection is not authenticated, like the one to Redis, so use it only on a private network.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import redis

from metatrain.errors import ArtifactError, NonFinite
from metatrain.models.description import BaseDescription
from service.errors import Overloaded, Unavailable
from service.predicting.interface import Answer, WeightsKey
from worker.errors import EncryptionKeyMissing, WeightsCorrupt, WeightsMissing

LINE_BYTES = 64 * 2**20
"""Longest line in bytes: enough for all texts of a request, or for a whole answer."""
FORMAT = 2
_ERRORS: dict[str, Callable[[str], Exception]] = {
    "WeightsMissing": WeightsMissing,
    "WeightsCorrupt": WeightsCorrupt,
    "ArtifactError": ArtifactError,
    "NonFinite": NonFinite,
    "RedisError": redis.RedisError,
    "EncryptionKeyMissing": EncryptionKeyMissing,
}


def about(base: BaseDescription) -> dict[str, Any]:
    """Return the values that must be equal on both sides: the protocol version and the base digest.

    The base model must be the same because an adapter works only on the base model that it was made on.
    """
    return {"format": FORMAT, "base": base.digest}


def line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def call(number: int, weights: WeightsKey, texts: list[str], share: int) -> dict[str, Any]:
    return {"call": number, "weights": asdict(weights), "texts": texts, "share": share}


def answer(number: int, result: Answer) -> dict[str, Any]:
    return {"answer": number, **asdict(result)}


def answer_of(document: dict[str, Any]) -> Answer:
    empty = document.get("empty", [])  # earlier predictors do not say it
    return Answer(tuple(document["labels"]), document["outputs"], document["truncated"], document["seconds"], empty)


def error(number: int, problem: BaseException) -> dict[str, Any]:
    """Return the document that reports the error of call `number`.

    An unexpected error is sent as its type only, because its text may quote an input.
    """
    if isinstance(problem, Overloaded):
        return {"error": number, "kind": "Overloaded", "message": problem.detail, "retry_after": problem.headers["Retry-After"]}
    if isinstance(problem, Unavailable):
        return {"error": number, "kind": "Unavailable", "message": problem.detail}
    kind = error_kind(problem)
    return {"error": number, "kind": kind or type(problem).__name__, "message": str(problem) if kind else ""}


def error_kind(problem: BaseException) -> str | None:
    """Return the name of an error's type if it is an expected one, otherwise None.

    Expected errors are sent with their text. For a subclass of an expected type, the name of the expected type is returned.
    """
    return next((name for name in _ERRORS if name in [each.__name__ for each in type(problem).__mro__]), None)


def error_of(document: dict[str, Any]) -> Exception:
    kind, message = document["kind"], document["message"]
    if kind == "Overloaded":
        return Overloaded(message, int(document["retry_after"]))
    if kind == "Unavailable":
        return Unavailable(message)
    return _ERRORS[kind](message) if kind in _ERRORS else Unavailable(f"the predictor failed: {kind}; its log has the reason")
