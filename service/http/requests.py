"""What every request gets: an id, in and out, a line in the log when it is answered, and a place in the metrics."""

import logging
import re
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ClientGone, ServiceError, problem
from service.http.metrics import Metrics
from worker.logs import fields, places

log = logging.getLogger(__name__)
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_NONE = ClientGone.status
"""The status of a request that had no answer: its client went before."""
_USABLE = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class _Broken(Exception):
    """An answer that could not be finished; what happened is in the log already."""


class Requests:
    """ASGI middleware. `X-Request-ID` of up to 64 letters, digits, dots, dashes and underscores is kept, anything else replaced;
    the answer carries it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        identity = given if _USABLE.fullmatch(given) else secrets.token_hex(8).encode()
        began, status = time.perf_counter(), _NONE

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), (b"x-request-id", identity)]}
            await send(message)

        with fields(request=identity.decode()):
            try:
                await self.app(scope, receive, answer)
            except Exception as error:  # here, and not in the server, which would log a message that may quote an input
                log.error("failed\n%s", places(error))
                if status != _NONE:
                    raise _Broken from None
                failed = f"{scope['method']} {scope['path']} failed; the service's log has the reason"
                await problem(ServiceError(failed))(scope, receive, answer)
            finally:
                spent = time.perf_counter() - began
                method = scope["method"] if scope["method"] in _METHODS else "other"
                route = getattr(scope.get("route"), "path", "unknown")  # the template: no ids among the labels
                metrics: Metrics = scope["app"].state.service.metrics
                metrics.answered(method, route, status, spent)
                access = scope.get("state", {}).get("access")
                whose = {"tenant": access.tenant, "key": access.key} if access else {}
                about = {"method": scope["method"], "path": scope["path"], "status": status}
                with fields(**about, milliseconds=round(1e3 * spent, 1), **whose):
                    log.info("answered")
