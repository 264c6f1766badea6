"""Middleware for every request: its id, its log line, its metrics, and its end when the service stops."""

import asyncio
import logging
import re
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import ClientGone, ServiceError, problem
from service.http.answer_headers import with_standard_headers
from service.http.drain import Drain
from service.http.metrics import Metrics
from worker.logs import fields, places

log = logging.getLogger(__name__)
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_NO_ANSWER = ClientGone.status
"""The logged status of a request without an answer, because its client disconnected."""
_VALID_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class _AnswerBroken(Exception):
    """Raised if a response fails after its first part was sent. The cause is already in the log."""


class Requests:
    """ASGI middleware that gives each request an id, and logs and counts the request when it ends.

    The id is the request's `X-Request-ID` header if it has 1 to 64 letters, digits, dots, dashes and underscores. Otherwise it is
    generated. The response has the id in the same header, and the standard headers.

    `drain` knows which requests are running, and refuses new ones once the service stops.
    """

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self.app, self._drain = app, drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = dict(scope["headers"]).get(b"x-request-id", b"")
        if not _VALID_ID.fullmatch(request_id):
            request_id = secrets.token_hex(8).encode()
        began, status = time.perf_counter(), _NO_ANSWER

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {
                    **message,
                    "headers": [*with_standard_headers(message.get("headers", ())), (b"x-request-id", request_id)],
                }
            await send(message)

        with fields(request=request_id.decode()):
            task = self._drain.enter()
            try:
                if (refusal := self._drain.refusal(scope["path"])) is not None:
                    await problem(refusal)(scope, receive, answer)
                else:
                    await self.app(scope, receive, answer)
            except asyncio.CancelledError:
                if task is None or not self._drain.gave_up or status != _NO_ANSWER:
                    raise
                task.uncancel()
                await problem(self._drain.cut_off())(scope, receive, answer)
            except Exception as error:  # caught here, because the server would log the error's text, which may quote an input
                log.error("failed\n%s", places(error))
                if status != _NO_ANSWER:
                    raise _AnswerBroken from None
                failed = f"{scope['method']} {scope['path']} failed; the service's log has the reason, under the request id"
                await problem(ServiceError(failed))(scope, receive, answer)
            finally:
                self._drain.leave(task)
                spent = time.perf_counter() - began
                method = scope["method"] if scope["method"] in _METHODS else "other"
                route = getattr(scope.get("route"), "path", "unknown")  # the path template, so that no ids become metric labels
                metrics: Metrics = scope["app"].state.service.metrics
                metrics.observe_request(method, route, status, spent)
                access = scope.get("state", {}).get("access")
                caller = {"tenant": access.tenant, "key": access.key} if access else {}
                request = {"method": scope["method"], "path": scope["path"], "status": status}
                with fields(**request, milliseconds=round(1e3 * spent, 1), **caller):
                    log.info("answered")
