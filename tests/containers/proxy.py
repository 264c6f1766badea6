"""Checks of the proxy: its headers, and that it refuses what is oversized, slow or too much."""

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import httpx


class Results(Protocol):
    """Takes the results of checks."""

    def add(self, container: str, check: str, passed: bool, found: object = "") -> None: ...


def check(table: Results, client: httpx.Client, certificate: Path, port: int, most: int, seconds: int, connections: int) -> None:
    """Check a proxy with these limits.

    `most`: bytes of a body. `seconds`: for a header. `connections`: of one address.
    """
    answer = client.get("/healthz")
    table.add("proxy", "Strict-Transport-Security", "max-age" in answer.headers.get("strict-transport-security", ""))
    table.add("proxy", "its version is not shown", answer.headers.get("server", "nginx") in ("nginx", "uvicorn"))
    _check_oversized(table, client, most)
    _check_slow(table, certificate, port, seconds)
    _check_connections(table, client, certificate, port, connections)
    _check_rate(table, client)
    table.add("proxy", "answers afterwards", _answers_again(client))


@contextmanager
def _connected(certificate: Path, port: int) -> Iterator[ssl.SSLSocket]:
    context = ssl.create_default_context(cafile=str(certificate))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as encrypted,
    ):
        yield encrypted


def _check_oversized(table: Results, client: httpx.Client, most: int) -> None:
    for name, content in (("by its stated length", b"x" * (most + 1)), ("chunked", _chunks(most + 1))):
        answer = client.post("/adapt", content=content, headers={"Content-Type": "application/json"})
        kind = answer.headers.get("content-type", "")
        problem = answer.status_code == 413 and kind.startswith("application/problem+json") and answer.json()["status"] == 413
        table.add("proxy", f"an oversized body {name}: 413", problem, f"{answer.status_code} {kind}")
    below = client.post("/adapt", content=b'{"support": [' + b" " * (most - 100), headers={"Content-Type": "application/json"})
    table.add("proxy", "a body just below the limit reaches the service: 422", below.status_code == 422, below.text[:80])


def _chunks(size: int) -> Iterator[bytes]:
    for start in range(0, size, 10_000):
        yield b"x" * min(10_000, size - start)


def _check_slow(table: Results, certificate: Path, port: int, seconds: int) -> None:
    """Send a header byte by byte, and a body that stops.

    Both connections have to end soon after the limit.
    """
    with _connected(certificate, port) as connection:
        began = time.monotonic()
        ended = _drip(connection, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"x" * 100, seconds + 10)
        took = time.monotonic() - began
        table.add("proxy", f"a header slower than {seconds} s: disconnected", ended and took < seconds + 3, f"after {took:.1f} s")
    with _connected(certificate, port) as connection:
        began = time.monotonic()
        connection.sendall(b"POST /adapt HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
        answer = _rest(connection)
        took = time.monotonic() - began
        table.add(
            "proxy", f"a body that stops for {seconds} s: disconnected", took < seconds + 3, f"after {took:.1f} s {answer[:30]!r}"
        )


def _drip(connection: ssl.SSLSocket, content: bytes, seconds: float) -> bool:
    """Send the content, at most ten bytes a second.

    Return True if the other side ends the connection within `seconds`.
    """
    deadline = time.monotonic() + seconds
    connection.settimeout(0.1)
    for position in range(len(content)):
        if time.monotonic() > deadline:
            return False
        try:
            connection.sendall(content[position : position + 1])
            if connection.recv(1000) == b"":
                return True
        except TimeoutError:
            continue
        except OSError:
            return True
    return False


def _rest(connection: ssl.SSLSocket) -> bytes:
    """Return what is received until the other side ends the connection."""
    received = b""
    try:
        while more := connection.recv(65536):
            received += more
    except (TimeoutError, OSError):
        pass
    return received


def _check_connections(table: Results, client: httpx.Client, certificate: Path, port: int, most: int) -> None:
    """Hold as many unfinished requests as are allowed: the next one is refused."""
    with ExitStack() as held:
        for _ in range(most + 5):
            connection = held.enter_context(_connected(certificate, port))
            connection.sendall(b"POST /adapt HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
        answer = client.get("/healthz")
        retry = answer.headers.get("retry-after")
        table.add("proxy", f"more than {most} connections of an address: 429", answer.status_code == 429, f"Retry-After {retry}")


def _check_rate(table: Results, client: httpx.Client) -> None:
    _answers_again(client)
    statuses = [client.get("/healthz").status_code for _ in range(1500)]
    refused = statuses.count(429)
    table.add("proxy", "too many requests of an address: 429", refused > 0 and statuses[0] == 200, f"{refused} of {len(statuses)}")


def _answers_again(client: httpx.Client) -> bool:
    for _ in range(30):
        if client.get("/healthz").status_code == 200:
            return True
        time.sleep(0.5)
    return False
