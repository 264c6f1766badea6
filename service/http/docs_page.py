"""`/docs`: the OpenAPI document as a page, with Swagger UI from an installed package.

The files come from the package `fastapi-swagger`, of which nothing else is used. The page has no script of its own in it, so that
its Content-Security-Policy can forbid such scripts.
"""

import json
from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response

_PACKAGE = "fastapi_swagger"
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",  # Swagger UI sets style attributes
        "img-src 'self' data:",  # its icons are data: URLs in its style sheet
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Quickstudy</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="icon" type="image/png" href="docs/favicon-32x32.png">
<div id="docs"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</html>
"""
# No validator: it is a server elsewhere. Keys are not persisted: they would stay in the browser.
_START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  filter: true,
  persistAuthorization: false,
  validatorUrl: null,
});
"""
_FILES = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
_CACHED = {"Cache-Control": "public, max-age=3600"}
DOCS_PATHS = frozenset({"/docs", "/docs/start.js", *(f"/docs/{name}" for name in _FILES)})
"""The paths of the page and its files. They are public."""


def routes(document: Callable[[], dict[str, Any]]) -> APIRouter:
    """Return a router with `/openapi.json`, the page `/docs` and its files.

    They are not in the OpenAPI document. `document`: returns that document. It is encoded once, because everybody may ask for it.
    """
    encoded = cache(lambda: json.dumps(document(), ensure_ascii=False, separators=(",", ":")).encode())
    router = APIRouter(include_in_schema=False)
    for name, media_type in _FILES.items():
        _add_file(router, name, media_type)

    @router.get("/openapi.json")
    async def openapi() -> Response:
        return Response(encoded(), media_type="application/json")

    @router.get("/docs")
    async def docs() -> Response:
        return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})

    @router.get("/docs/start.js")
    async def start_docs() -> Response:
        return Response(_START, media_type="text/javascript", headers=_CACHED)

    return router


def _add_file(router: APIRouter, name: str, media_type: str) -> None:
    # Read once, because the file is public: to read it for each request would take a thread that all requests share.
    content = resources.files(_PACKAGE).joinpath("resources", name).read_bytes()

    async def file() -> Response:
        return Response(content, media_type=media_type, headers=_CACHED)

    router.add_api_route(f"/docs/{name}", file, methods=["GET"], name=f"docs {name}")
