"""A real HTTP server that answers as a test tells it to, or not at all."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

MADE = {"adapter_id": "a1", "status": "ready", "truncated": []}
ADAPTER: dict[str, Any] = {
    **MADE,
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
    """`end`: how the connection goes on after what is said."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    end: Literal["whole", "cut", "dropped", "hangs"] = "whole"


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: Any


class Server(ThreadingHTTPServer):
    """Answers the first request with the first reply, and so on."""

    daemon_threads = True

    def __init__(self, replies: list[Reply]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies, self.asked = list(replies), list[Asked]()
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def _answer(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.asked.append(Asked(self.command, self.path, headers, json.loads(content) if content else None))
        reply = self.server.replies.pop(0)
        self.close_connection = True
        if reply.end == "dropped":
            return
        body = reply.body if isinstance(reply.body, bytes) else b"" if reply.body is None else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) + (reply.end != "whole")))
        self.send_header("Connection", "close")  # so that no client sends its next request where nobody reads
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        if reply.end == "hangs":
            self.server.over.wait(10)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(*replies: Reply) -> Iterator[Server]:
    """All replies must have been asked for in the end."""
    server = Server(list(replies))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
        assert not server.replies
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def problem(status: int, detail: str = "no", headers: dict[str, str] | None = None, **extra: Any) -> Reply:
    return Reply(status, {"title": "No", "status": status, "detail": detail, **extra}, headers or {})
