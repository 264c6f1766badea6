"""The OpenAPI document: every error of every route as a problem, and the limits that are settings."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from service.errors import (
    BodyTooLarge,
    InvalidRequest,
    MissingScope,
    QuotaExceeded,
    ServiceError,
    Unauthenticated,
    Unavailable,
)
from service.http.schemas import TEXT_PATTERN, Problem
from service.kinds.registry import http_kinds
from service.settings import ServiceSettings

Responses = dict[int | str, dict[str, Any]]
OF_ANY_ROUTE: tuple[type[ServiceError], ...] = (Unauthenticated, MissingScope, QuotaExceeded, Unavailable, ServiceError)
"""Of routes that take keys. `needs` and `Tenant` raise the first three."""
OF_A_BODY = (InvalidRequest, BodyTooLarge)
_RETRY_AFTER = {"Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 1}}}
_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"schema": {"type": "string", "const": "Bearer"}}},
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}
_THE_ADAPTER = {"adapter_id": "$response.body#/adapter_id"}
_INPUTS = {"inputs": ["order pizza", "play a song"]}
_OF_AN_ADAPTER = (
    "get_adapter",
    "delete_adapter",
    "change_adapter",
    "adapter_events",
    "pin_adapter",
    "unpin_adapter",
    "add_examples",
)
TO_THE_ADAPTER: dict[str, Any] = {
    **{name: {"operationId": name, "parameters": _THE_ADAPTER} for name in _OF_AN_ADAPTER},
    "predict": {"operationId": "predict", "requestBody": {**_THE_ADAPTER, **_INPUTS}},
    "set_alias": {"operationId": "set_alias", "requestBody": _THE_ADAPTER},
}
"""Links of answers that name an adapter: what can be asked for with it."""
TO_THE_ALIAS: dict[str, Any] = {
    **{
        name: {"operationId": name, "parameters": {"alias": "$response.body#/alias"}}
        for name in ("get_alias", "delete_alias", "set_alias")
    },
    "predict": {"operationId": "predict", "requestBody": {"adapter_id": "$response.body#/alias", **_INPUTS}},
    "delete_adapter": {"operationId": "delete_adapter", "parameters": _THE_ADAPTER},
}
_REQUEST_ID = {"X-Request-ID": {"description": "as it came, or made here", "schema": {"type": "string"}}}


def operation_id(route: APIRoute) -> str:
    """The function's name: generated clients name their methods after it."""
    return route.name


def problems(*errors: type[ServiceError]) -> Responses:
    """For `responses` of a route: each status with the problems that it stands for."""
    responses: Responses = {}
    for error in sorted(errors, key=lambda error: error.status):
        response = responses.setdefault(error.status, {"description": "", "content": {"application/problem+json": {}}})
        response["description"] = " · ".join(filter(None, (response["description"], error.title)))
        if error.status in _HEADERS:
            response["headers"] = _HEADERS[error.status]
        content = response["content"]["application/problem+json"]
        content["schema"] = {"$ref": "#/components/schemas/Problem"}
        content.setdefault("examples", {})[error.kind] = {"value": _shown(error)}
    return responses


def _shown(error: type[ServiceError]) -> dict[str, Any]:
    shown = {"type": f"/problems/{error.kind}", "title": error.title, "status": error.status}
    return {**shown, "detail": "…", "request_id": "4be1a0c85f7d9023"}


def describe(app: FastAPI, settings: ServiceSettings, initializations: list[str]) -> None:
    """Have the application's document show the limits of `settings`. `initializations`: what can be adapted from."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            schemas = document["components"]["schemas"]
            problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= {**problem.pop("$defs"), "Problem": problem}
            _limit(schemas, settings)
            _show_initialization(schemas["AdaptRequest"]["properties"]["initialization"], initializations)
            for operation in (operation for path in document["paths"].values() for operation in path.values()):
                for response in operation["responses"].values():
                    response["headers"] = {**response.get("headers", {}), **_REQUEST_ID}
                for parameter in operation.get("parameters", ()):
                    _not_nullable(parameter["schema"])
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _limit(schemas: dict[str, Any], settings: ServiceSettings) -> None:
    text = {"minLength": 1, "maxLength": settings.max_text_chars, "pattern": TEXT_PATTERN}
    for kind in http_kinds().values():
        kind.document(schemas, settings)
    schemas["AdaptRequest"]["properties"]["support"] |= {"minItems": 2, "maxItems": settings.max_examples}
    schemas["ExamplesRequest"]["properties"]["support"] |= {"minItems": 1, "maxItems": settings.max_examples - 2}
    schemas["ScoreRequest"]["properties"]["examples"] |= {"minItems": 1, "maxItems": settings.max_examples}
    inputs = schemas["PredictRequest"]["properties"]["inputs"]
    inputs |= {"minItems": 1, "maxItems": settings.max_inputs}
    inputs["items"] |= text
    for name in ("AdaptRequest", "ExamplesRequest"):
        _not_null(schemas[name], "ttl_seconds")["maximum"] = settings.max_ttl_seconds
    for name in ("AdaptRequest", "ExamplesRequest", "AdapterChanges"):
        _not_null(schemas[name], "name")["pattern"] = TEXT_PATTERN
        _not_null(schemas[name], "tags")["items"]["pattern"] = TEXT_PATTERN


def _not_nullable(schema: dict[str, Any]) -> None:
    """A query or a header has no null: it is there or not."""
    if "anyOf" in schema:
        schema |= next(kind for kind in schema.pop("anyOf") if kind != {"type": "null"})


def _not_null(schema: dict[str, Any], name: str) -> dict[str, Any]:
    own: dict[str, Any] = schema["properties"][name]
    first: dict[str, Any] = own["anyOf"][0] if "anyOf" in own else own
    return first


def _show_initialization(schema: dict[str, Any], names: list[str]) -> None:
    """Only by example: the document is public, and which there are is for those with a key to know."""
    schema |= {"description": "one of those that `GET /initializations` lists", "examples": ["default"]}
    if schema["default"] not in names:
        del schema["default"]
