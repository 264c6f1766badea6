"""Limit the size of request bodies, one by one and together, without reading a body that is refused."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLarge, QuotaExceeded, ServiceError, problem
from service.http.body_budget import BodyBudget
from worker.errors import LimitReached

WITHOUT_BODY = frozenset({"GET", "HEAD", "DELETE"})
"""The methods of requests whose body, if there is one, is not read."""


class BodyLimit:
    """ASGI middleware that answers 413 as soon as it is known that a body has more than `most` bytes.

    It checks the Content-Length header first, and then the number of bytes that have arrived. Either is also reserved in the
    service's `BodyBudget` until the request ends; if that is exhausted, the answer is 429 or 503.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in WITHOUT_BODY:
            await self.app(scope, _without_body(receive) if scope["type"] == "http" else receive, send)
            return
        access = scope.get("state", {}).get("access")
        body = _Body(scope["app"].state.service.body_budget, access.tenant if access else "", self.most)
        try:
            content = await body.read(scope, receive)
            if content is not None:
                await self.app(scope, _replayed(content, receive), send)
        except _Refused as refused:
            await problem(refused.error)(scope, receive, send)
        finally:
            body.release()


class _Refused(Exception):
    """Raised if a body is not read any further; errors of the application have other classes."""

    def __init__(self, error: ServiceError) -> None:
        self.error = error


class _Body:
    """One body that is being read, and the bytes that are reserved for it."""

    def __init__(self, budget: BodyBudget, tenant: str, most: int) -> None:
        self._budget, self._tenant, self._most = budget, tenant, most
        self._reserved = 0

    async def read(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the body, or None if the client disconnects. Raises _Refused."""
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        self._reserve(int(declared) if declared.isdigit() else 0, complete=False)
        chunks: list[bytes] = []
        received, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunks.append(message.get("body", b""))
            received += len(chunks[-1])
            more = message.get("more_body", False)
            self._reserve(received, complete=not more)
        return b"".join(chunks)

    def release(self) -> None:
        self._budget.release(self._tenant, self._reserved)

    def _reserve(self, size: int, *, complete: bool) -> None:
        if size > self._most:
            at_least = "" if complete else "at least "
            raise _Refused(BodyTooLarge(f"body: expected at most {self._most} bytes, got {at_least}{size}"))
        if size > self._reserved:
            try:
                self._budget.reserve(self._tenant, size - self._reserved, self._reserved)
            except LimitReached as reached:
                raise _Refused(QuotaExceeded(reached)) from reached
            except ServiceError as error:
                raise _Refused(error) from error
            self._reserved = size


def _replayed(content: bytes, receive: Receive) -> Receive:
    queue: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]

    async def replay() -> Message:
        return queue.pop(0) if queue else await receive()

    return replay


def _without_body(receive: Receive) -> Receive:
    return _replayed(b"", receive)
