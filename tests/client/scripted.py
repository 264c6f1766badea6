"""A real HTTP server that sends scripted replies, including replies that break off or hang."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

ADAPTED = {"adapter_id": "a1", "status": "ready", "truncated": []}
ADAPTER: dict[str, Any] = {
    **ADAPTED,
    "initialization": "default",
    "initialization_digest": "d",
    "labels": ["order", "play"],
    "examples": 2,
    "steps": 2,
    "seed": 0,
    "label_words": False,
    "precision": "float32",
    "attempt": 1,
    "support_loss": [0.5, 0.25],
    "timings": {"queue": 1},
    "digest": "d",
    "error": None,
    "last_error": None,
    "pinned": False,
    "recovery_ms": None,
    "created_at": 1.0,
    "expires_at": 2,
}


@dataclass(frozen=True)
class Reply:
    """One scripted reply.

    `end` says how the connection ends. "whole" sends the complete reply. "dropped" closes the connection without a reply. "cut" and
    "hangs" announce one byte more than they send: "cut" then closes the connection, "hangs" keeps it open.
    """

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    end: Literal["whole", "cut", "dropped", "hangs"] = "whole"


@dataclass(frozen=True)
class Request:
    """One request that the server received. Header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


class Server(ThreadingHTTPServer):
    """A server that sends its replies in order, one for each request, and records all requests."""

    daemon_threads = True

    def __init__(self, replies: list[Reply]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies, self.requests = list(replies), list[Request]()
        self.test_ended = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def _answer(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append(Request(self.command, self.path, headers, json.loads(content) if content else None))
        reply = self.server.replies.pop(0)
        self.close_connection = True
        if reply.end == "dropped":
            return
        body = reply.body if isinstance(reply.body, bytes) else b"" if reply.body is None else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) + (reply.end != "whole")))
        self.send_header("Connection", "close")  # this handler serves only one request per connection
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        if reply.end == "hangs":
            self.server.test_ended.wait(10)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(*replies: Reply) -> Iterator[Server]:
    """Run a server with these replies and yield it. Fail at the end if some replies were never sent."""
    server = Server(list(replies))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
        assert not server.replies
    finally:
        server.test_ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


def problem(status: int, detail: str = "no", headers: dict[str, str] | None = None, **extra: Any) -> Reply:
    """Return an error reply whose body is a problem document (RFC 9457)."""
    return Reply(status, {"title": "No", "status": status, "detail": detail, **extra}, headers or {})
