"""The connections of a server: their addresses, the time of their bodies, and the limit on open files."""

import asyncio
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from service.http.body_time import BodyTime
from service.running.connections import OpenConnections, limited_connection
from service.running.open_files import raise_limit


@contextmanager
def answering_with_addresses(listening: socket.socket) -> Iterator[int]:
    """Run a server that answers with the address of its client, and yield its port.

    It trusts proxies in 127.0.0.0/8, and allows one connection from each other address.
    """

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["client"][0].encode()})

    proxies = ["127.0.0.0/8"]
    http = limited_connection(OpenConnections(10, 1, proxies), 5)
    config = uvicorn.Config(app, http=http, log_config=None, lifespan="off", proxy_headers=True, forwarded_allow_ips=proxies)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while thread.is_alive() and not server.started:
            time.sleep(0.01)
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def test_a_proxy_is_known_on_a_socket_for_both_versions_of_ip() -> None:
    listening = socket.socket(socket.AF_INET6)
    try:
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listening.bind(("::", 0))
    except OSError:
        listening.close()
        pytest.skip("this machine has no IPv6")
    with answering_with_addresses(listening) as port, httpx.Client() as first, httpx.Client() as second:
        url = f"http://127.0.0.1:{port}/"
        assert first.get(url).text == "127.0.0.1"
        assert second.get(url, headers={"X-Forwarded-For": "203.0.113.5"}).text == "203.0.113.5"  # the first is still connected


def test_only_bodies_that_are_read_have_a_time_limit() -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.3)
        return {"type": "http.disconnect"}

    async def statuses(method: str) -> list[int]:
        sent: list[int] = []

        async def send(message: Any) -> None:
            sent.extend([message["status"]] if "status" in message else [])

        async def stream(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while (await receive())["type"] != "http.disconnect":
                pass

        async def wait_for_body(scope: Any, receive: Any, send: Any) -> None:
            await receive()

        app = BodyTime(stream if method == "GET" else wait_for_body, longest=0.1)
        await app({"type": "http", "method": method, "path": "/", "headers": []}, receive, send)
        return sent

    assert asyncio.run(statuses("GET")) == [200]  # an event stream, whose client sends nothing
    assert asyncio.run(statuses("POST")) == [408]


def test_the_limit_on_open_files_is_raised() -> None:
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
        raise_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, 65_536), hard)
        raise_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, 65_536), hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))
