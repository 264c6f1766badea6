"""Limit the size of request bodies, without reading an oversized body to its end."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLarge, problem


class BodyLimit:
    """ASGI middleware that answers 413 as soon as it is known that a body has more than `most` bytes.

    It checks the Content-Length header first, and then the number of bytes that have arrived.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        chunks: list[bytes] = []
        received = 0
        size, more = int(declared) if declared.isdigit() else 0, scope["method"] not in ("GET", "HEAD", "DELETE")
        while more and size <= self.most:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            chunks.append(message.get("body", b""))
            received += len(chunks[-1])
            more = message.get("more_body", False)
            size = max(size, received)
        if size > self.most:
            error = BodyTooLarge(f"body: expected at most {self.most} bytes, got {'at least ' if more else ''}{size}")
            await problem(error)(scope, receive, send)
            return
        queue: list[Message] = [{"type": "http.request", "body": b"".join(chunks), "more_body": False}]

        async def replay() -> Message:
            return queue.pop(0) if queue else await receive()

        await self.app(scope, replay, send)
