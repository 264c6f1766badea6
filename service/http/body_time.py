"""Limit the time that a request body takes to arrive."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooSlow, problem
from service.http.body_limit import WITHOUT_BODY

GRACE_SECONDS = 10.0
"""Time that every body gets, however small it is."""
BYTES_A_SECOND = 20_000
"""The lowest average speed at which a body may arrive, after the first GRACE_SECONDS."""


class BodyTime:
    """ASGI middleware that answers 408 to a body that arrives too slowly.

    A body has `longest` seconds in all. It also has to arrive at BYTES_A_SECOND on average, after the first GRACE_SECONDS. The
    time that a request takes after its body has arrived is not limited, and neither is that of a request whose body is not read,
    such as one for an event stream: there, `receive` only waits for the end of the connection.
    """

    def __init__(self, app: ASGIApp, longest: float) -> None:
        self.app, self._longest = app, longest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in WITHOUT_BODY:
            await self.app(scope, receive, send)
            return
        began, received, complete = asyncio.get_running_loop().time(), 0, False

        async def timed() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            allowed = min(self._longest, GRACE_SECONDS + received / BYTES_A_SECOND)
            try:
                async with asyncio.timeout_at(began + allowed):
                    message = await receive()
            except TimeoutError:
                raise BodyTooSlow(received, allowed) from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            return message

        try:
            await self.app(scope, timed, send)
        except BodyTooSlow as error:
            await problem(error)(scope, receive, send)
