"""The class of all routes, which keeps large bodies and blocking functions off the event loop."""

import functools
import inspect
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from service.errors import InvalidRequest, ServiceError
from service.http.tenant_threads import in_thread

PARSED_ON_LOOP = 64_000
"""Largest body in bytes that is parsed on the event loop. That takes at most some 30 milliseconds."""
VALUES_FOR_EACH_EXAMPLE = 32
"""How many JSON values a body may have for each example that MAX_EXAMPLES allows. Labelled texts have three."""


class TenantRoute(APIRoute):
    """A route that does not let one tenant's requests delay those of others."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint if inspect.iscoroutinefunction(endpoint) else _in_thread(endpoint), **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle, body = super().get_route_handler(), self.body_field

        async def handle_large(request: Request) -> Response:
            if body is None:
                return await handle(request)
            parsed = _ParsedOffLoop(request.scope, request.receive, functools.partial(body.validate, values={}, loc=("body",)))
            try:
                return await handle(parsed)
            except HTTPException:
                if parsed.refusal is not None:
                    raise parsed.refusal from None
                raise

        return handle_large


class _ParsedOffLoop(Request):
    """A request whose `json` parses and validates a large body in the work pool.

    `validate`: returns (body model, errors) for parsed JSON. FastAPI takes the body model as it is. `refusal`: why the body was
    refused; FastAPI would answer 400 for any error of `json` but an HTTPException.
    """

    def __init__(self, scope: Any, receive: Any, validate: Callable[[Any], tuple[Any, Any]]) -> None:
        super().__init__(scope, receive)
        self._validate = validate
        self.refusal: Exception | None = None

    async def json(self) -> Any:
        content = await self.body()
        if len(content) <= PARSED_ON_LOOP:
            return await super().json()
        service, tenant = self.app.state.service, self.state.access.tenant
        most = VALUES_FOR_EACH_EXAMPLE * max(service.settings.max_examples, service.settings.max_inputs)
        try:
            return await service.work.run(tenant, _parse, content, most, self._validate)
        except (ServiceError, RequestValidationError) as error:
            self.refusal = error
            raise HTTPException(400) from error


def _parse(content: bytes, most: int, validate: Callable[[Any], tuple[Any, Any]]) -> Any:
    """Return the body model of a JSON body.

    Raises RequestValidationError, and InvalidRequest if the body has more than `most` values.
    """
    text = content.decode(json.detect_encoding(content), "surrogatepass")
    _check_number_of_values(text, most)
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        problem = {"type": "json_invalid", "loc": ("body", error.pos), "msg": error.msg, "input": {}, "ctx": {"error": error.msg}}
        raise RequestValidationError([problem]) from error
    body, errors = validate(parsed)
    if errors:
        raise RequestValidationError(errors)
    return body


def _check_number_of_values(text: str, most: int) -> None:
    """Raise InvalidRequest if a JSON text has more than `most` values, before any of them is created.

    A million small values take seconds and a gigabyte. Without escaped characters, every second part between quotes is a string.
    Outside of strings, each comma and each opening bracket is followed by at most one value that none of the others precedes.
    """
    unescaped = text.replace("\\\\", "").replace('\\"', "")
    strings = unescaped.count('"') // 2
    if strings <= 2 * most:  # each value may have a name
        outside = "".join(unescaped.split('"')[::2])
        if sum(map(outside.count, ",[{")) <= most:
            return
    raise InvalidRequest("body", f"at most {most} JSON values", "more")


def _in_thread(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(endpoint)
    async def run(*arguments: Any, **named: Any) -> Any:
        return await in_thread(endpoint, *arguments, **named)

    return run
