"""Complete the OpenAPI document: the possible errors of each route, and the limits from the settings."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from service.errors import (
    BodyTooLarge,
    BodyTooSlow,
    InvalidRequest,
    MissingScope,
    Overloaded,
    QuotaExceeded,
    ServiceError,
    TooManyFailedKeys,
    Unauthenticated,
    Unavailable,
    UnknownHost,
)
from service.http.schemas import TEXT_PATTERN, Problem
from service.kinds.registry import http_kinds
from service.settings import ServiceSettings

Responses = dict[int | str, dict[str, Any]]
ROUTE_ERRORS: tuple[type[ServiceError], ...] = (
    Unauthenticated,
    TooManyFailedKeys,
    UnknownHost,
    MissingScope,
    QuotaExceeded,
    Unavailable,
    ServiceError,
)
"""The errors of every route that requires an API key; authentication and `needs` raise the first five."""
BODY_ERRORS = (InvalidRequest, BodyTooLarge, BodyTooSlow, Overloaded)
_RETRY_AFTER = {"Retry-After": {"description": "seconds to wait before a retry", "schema": {"type": "integer", "minimum": 1}}}
_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"schema": {"type": "string", "const": "Bearer"}}},
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}
_ADAPTER_ID_OF_ANSWER = {"adapter_id": "$response.body#/adapter_id"}
_INPUTS = {"inputs": ["order pizza", "play a song"]}
_ADAPTER_OPERATIONS = (
    "get_adapter",
    "delete_adapter",
    "change_adapter",
    "adapter_events",
    "pin_adapter",
    "unpin_adapter",
    "add_examples",
)
ADAPTER_LINKS: dict[str, Any] = {
    **{name: {"operationId": name, "parameters": _ADAPTER_ID_OF_ANSWER} for name in _ADAPTER_OPERATIONS},
    "predict": {"operationId": "predict", "requestBody": {**_ADAPTER_ID_OF_ANSWER, **_INPUTS}},
    "set_alias": {"operationId": "set_alias", "requestBody": _ADAPTER_ID_OF_ANSWER},
}
"""OpenAPI links from an answer that names an adapter to the operations on it."""
ALIAS_LINKS: dict[str, Any] = {
    **{
        name: {"operationId": name, "parameters": {"alias": "$response.body#/alias"}}
        for name in ("get_alias", "delete_alias", "set_alias")
    },
    "predict": {"operationId": "predict", "requestBody": {"adapter_id": "$response.body#/alias", **_INPUTS}},
    "delete_adapter": {"operationId": "delete_adapter", "parameters": _ADAPTER_ID_OF_ANSWER},
}
_REQUEST_ID = {
    "X-Request-ID": {"description": "id of the request: as the request sent it, or else a new one", "schema": {"type": "string"}}
}


def operation_id(route: APIRoute) -> str:
    """Return the name of the route's function. Generated clients name their methods after it."""
    return route.name


def problems(*errors: type[ServiceError]) -> Responses:
    """Return the `responses` of a FastAPI route that may raise these errors.

    Errors with the same status share one entry, with an example for each.
    """
    responses: Responses = {}
    for error in sorted(errors, key=lambda error: error.status):
        response = responses.setdefault(error.status, {"description": "", "content": {"application/problem+json": {}}})
        response["description"] = " · ".join(filter(None, (response["description"], error.title)))
        if error.status in _HEADERS:
            response["headers"] = _HEADERS[error.status]
        content = response["content"]["application/problem+json"]
        content["schema"] = {"$ref": "#/components/schemas/Problem"}
        content.setdefault("examples", {})[error.kind] = {"value": _example(error)}
    return responses


def _example(error: type[ServiceError]) -> dict[str, Any]:
    members = {"type": f"/problems/{error.kind}", "title": error.title, "status": error.status}
    return {**members, "detail": "…", "request_id": "4be1a0c85f7d9023"}


def describe(app: FastAPI, settings: ServiceSettings, initializations: list[str]) -> None:
    """Make the application's OpenAPI document include the limits from `settings` and the problem schema.

    `initializations` has the names of all initializations of this deployment. The document does not list them; they only determine
    whether it states a default for the field `initialization`.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            schemas = document["components"]["schemas"]
            problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= {**problem.pop("$defs"), "Problem": problem}
            _add_limits(schemas, settings)
            _describe_initialization(schemas["AdaptRequest"]["properties"]["initialization"], initializations)
            for operation in (operation for path in document["paths"].values() for operation in path.values()):
                for response in operation["responses"].values():
                    response["headers"] = {**response.get("headers", {}), **_REQUEST_ID}
                for parameter in operation.get("parameters", ()):
                    _drop_null(parameter["schema"])
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _add_limits(schemas: dict[str, Any], settings: ServiceSettings) -> None:
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
        _non_null(schemas[name], "ttl_seconds")["maximum"] = settings.max_ttl_seconds
    for name in ("AdaptRequest", "ExamplesRequest", "AdapterChanges"):
        _non_null(schemas[name], "name")["pattern"] = TEXT_PATTERN
        _non_null(schemas[name], "tags")["items"]["pattern"] = TEXT_PATTERN


def _drop_null(schema: dict[str, Any]) -> None:
    """Remove null from the schema of a query parameter or header, which is either present or absent."""
    if "anyOf" in schema:
        schema |= next(kind for kind in schema.pop("anyOf") if kind != {"type": "null"})


def _non_null(schema: dict[str, Any], name: str) -> dict[str, Any]:
    field: dict[str, Any] = schema["properties"][name]
    first: dict[str, Any] = field["anyOf"][0] if "anyOf" in field else field
    return first


def _describe_initialization(schema: dict[str, Any], names: list[str]) -> None:
    """Describe the field `initialization` without listing the `names` of the initializations.

    The names must not be listed, because the document is public and only clients with an API key may see them. The schema's
    default value is removed if it is not one of `names`.
    """
    schema |= {"description": "name of an initialization; `GET /initializations` lists them", "examples": ["default"]}
    if schema["default"] not in names:
        del schema["default"]
