"""Exception handlers that answer every error with a problem document."""

import logging
import re

import redis
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from kombu.exceptions import OperationalError
from quickstudy.one_line import printable
from starlette.exceptions import HTTPException

from service.errors import InvalidRequest, MethodNotAllowed, QuotaExceeded, ServiceError, Unavailable, UnknownPath, problem
from service.kinds.registry import http_kinds
from worker.errors import EncryptionKeyMissing, LimitReached, SealBroken

log = logging.getLogger(__name__)


def answer_errors_with_problems(app: FastAPI) -> None:
    """Register a handler for each type of error: the service's own, the framework's and Redis's."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(LimitReached, _limit_reached)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    for sealed in (EncryptionKeyMissing, SealBroken):
        app.add_exception_handler(sealed, _sealed_value)
    for connection_error in (redis.RedisError, OperationalError):
        app.add_exception_handler(connection_error, _redis_error)


async def _service_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    return problem(error)


async def _limit_reached(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LimitReached)
    return problem(QuotaExceeded(error))


async def _sealed_value(_request: Request, error: Exception) -> JSONResponse:
    log.error("%s", error)
    return problem(Unavailable(str(error)))


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    """Answer with the first validation error of a request.

    The field in the answer is a path such as `support[3].label`.
    """
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    loc = [part for part in first["loc"][1:] if part not in http_kinds()]  # pydantic adds the task kind to an example's path
    path = [_field_name(part) if isinstance(part, str) else f"[{part}]" for part in loc]
    field = re.sub(r"\.\[", "[", ".".join(path)) or "body"
    if first["type"] == "json_invalid":
        detail = first.get("ctx", {}).get("error", "malformed JSON")
        return problem(InvalidRequest("body", "valid JSON", f"{detail} at character {first['loc'][-1]}"))
    if not path and isinstance(first["input"], bytes):
        return problem(InvalidRequest("Content-Type", "application/json", request.headers.get("content-type", "nothing")))
    if first["type"] == "string_type" and path[-1:] == ["label"] and isinstance(first["input"], int | float):
        return problem(InvalidRequest(field, "a text; write a class that is a number in quotes", first["input"]))
    expected = {"missing": "a value", "extra_forbidden": "no such field"}.get(first["type"], _lower_first(first["msg"]))
    return problem(InvalidRequest(field, expected, "nothing" if first["type"] == "missing" else first["input"]))


def _field_name(name: str) -> str:
    """Return a field name from a request in at most 80 printable characters."""
    return printable(name if len(name) <= 80 else f"{name[:79]}…")


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    """Answer with the problem document for an HTTPException of the framework."""
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path
    if error.status_code == 404:
        return problem(UnknownPath(f"no resource at {path}"))
    if error.status_code == 405:
        return problem(MethodNotAllowed(f"{path} does not support {method}", headers={"Allow": _allowed(request, error)}))
    if error.status_code == 400:  # the framework could not decode the body, for example invalid UTF-8
        return problem(InvalidRequest("body", "valid JSON", "a body that cannot be decoded"))
    wrapped = ServiceError(str(error.detail), headers=dict(error.headers or {}))
    wrapped.status, wrapped.title = error.status_code, str(error.detail)
    return problem(wrapped)


def _allowed(request: Request, error: HTTPException) -> str:
    """Return all methods that the path supports, comma-separated.

    The framework's own Allow header is not enough, because it lists only the methods of one route of the path.
    """
    documented = request.app.openapi()["paths"].get(getattr(request.scope.get("route"), "path_format", ""))
    if documented is None:
        return (error.headers or {}).get("Allow", "")
    return ", ".join(sorted(method.upper() for method in documented))


async def _redis_error(request: Request, error: Exception) -> JSONResponse:
    log.warning("%s %s: Redis cannot be reached: %s", request.method, request.url.path, type(error).__name__)
    return problem(Unavailable("the queue or the cache cannot be reached"))


def _lower_first(message: str) -> str:
    message = message.removeprefix("Input should be ").removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
