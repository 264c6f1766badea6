"""Tests on raw sockets: bodies, time-outs, connections, keys, hosts, headers, and stopping."""

import contextlib
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from click.testing import CliRunner

from service.__main__ import main
from service.http.auth import PUBLIC
from service.http.docs_page import DOCS_PATHS
from service.http.failed_keys import FREE_FAILURES, WAITING_OF_ADDRESS
from tests.end_to_end.conftest import Served, served
from tests.servers import until

SUPPORT = [
    {"input": "please close the account now", "label": "close"},
    {"input": "close my card", "label": "close"},
    {"input": "order a pizza today", "label": "order"},
    {"input": "order the pizza", "label": "order"},
]
BODY: dict[str, Any] = {"support": SUPPORT, "initialization": "lora-from-zero"}
WRONG = f"qs_{'0' * 12}_{'a' * 43}"
CONNECTIONS = 60
HARMLESS = {"localhost:8000", "127.0.0.1:8000", "[::1]:8000", "app.localhost"}
REBOUND = {"attacker.example", "localhost.attacker.example", "127.0.0.1.attacker.example:8000", ""}
SETTINGS = {
    "MAX_BODY_BYTES": "8000000",
    "HEADER_SECONDS": "1",
    "BODY_SECONDS": "2",
    "KEEP_ALIVE_SECONDS": "2",
    "MAX_CONNECTIONS_PER_ADDRESS": str(CONNECTIONS),
    "FAILED_KEY_DELAY_SECONDS": "1",
}


def connect(served_at: Served, source: str = "127.0.0.1") -> socket.socket:
    """Open a connection to the service from the address `source`."""
    port = int(served_at.url.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(source, 0))


def head(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of the next answer on a connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        assert part, f"closed after {data!r}"
        data += part
    first, *lines = data.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = data.partition(b"\r\n\r\n")[2]
    while len(body) < int(headers.get("content-length", "0")):
        body += connection.recv(65536)
    return int(first.split()[1]), headers, body


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(65536) == b""
    except ConnectionResetError:
        return True


@contextlib.contextmanager
def open_sockets() -> Iterator[list[socket.socket]]:
    """Yield a list of sockets that are closed at the end of the `with` block."""
    sockets: list[socket.socket] = []
    try:
        yield sockets
    finally:
        for each in sockets:
            each.close()


def send_most_of_body(connection: socket.socket, size: int) -> None:
    """Send a body except for its last byte, as far as the service takes it."""
    connection.settimeout(2)
    with contextlib.suppress(OSError):
        connection.sendall(b"x" * (size - 1))


def trickle(connection: socket.socket, data: bytes) -> None:
    """Send bytes one by one, each after 0.2 seconds, until the other end closes the connection."""
    with contextlib.suppress(OSError):
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(0.2)


def create_key(data_dir: Path) -> str:
    created = CliRunner().invoke(
        main, ["keys", "--data-dir", str(data_dir), "create", "--json", "--tenant", "acme", "--scope", "admin"]
    )
    assert created.exit_code == 0, created.output
    return str(json.loads(created.stdout)["key"])


@dataclass
class Door:
    """A service with one key, and what it answered under several host names while it had none."""

    service: Served
    key: str
    open_answers: dict[str, int]

    @property
    def authorization(self) -> str:
        return f"Authorization: Bearer {self.key}"


@pytest.fixture(scope="module")
def door(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("door")
    with served(folder, {**environment, **SETTINGS}) as running:
        running.wait_ready()
        answers = {host: running.http.get("/adapters", headers={"Host": host}).status_code for host in (*HARMLESS, *REBOUND)}
        yield Door(running, create_key(folder / "data"), answers)


def test_a_rebound_name_does_not_reach_an_open_service(door: Door) -> None:
    allowed = {host for host, status in door.open_answers.items() if status == 200}
    assert allowed == HARMLESS
    assert {status for host, status in door.open_answers.items() if host not in allowed} == {421}
    with_key = {"Host": "attacker.example", "Authorization": f"Bearer {door.key}"}
    assert door.service.http.get("/adapters", headers=with_key).status_code == 200


def test_public_paths_accept_no_body(door: Door) -> None:
    memory = psutil.Process(door.service.process.pid).memory_info
    before = memory().rss
    with open_sockets() as connections:
        for path in sorted({*PUBLIC, "/problems/unavailable"}):
            for header in ("Content-Length: 7900000", "Transfer-Encoding: chunked"):
                connections.append(connect(door.service))
                connections[-1].sendall(head("POST", path, header))  # only the headers: the answer must not wait for the body
                status, _, body = read_answer(connections[-1])
                assert (status, json.loads(body)["type"]) == (413, "/problems/body-too-large"), path
        for connection in connections:
            send_most_of_body(connection, 7_900_000)
        assert memory().rss - before < 40e6 < 7.9e6 * len(connections)
    assert door.service.http.post("/healthz", content=b"").status_code == 405


def test_the_body_of_a_wrong_key_is_not_read(door: Door) -> None:
    for authorization in ((), (f"Authorization: Bearer {WRONG}",)):
        with connect(door.service) as connection:
            connection.sendall(head("POST", "/adapt", "Content-Length: 7900000", *authorization))
            assert read_answer(connection)[0] == 401
    # A client that sends its body before it reads the answer gets the answer too, and may use the connection again.
    with httpx.Client(base_url=door.service.url) as http:
        assert http.post("/adapt", content=b"x" * 5_000_000).status_code == 401
        assert http.get("/healthz").status_code == 200


def test_a_log_line_does_not_name_the_tenant_of_the_request_before_it(door: Door) -> None:
    with connect(door.service) as connection:  # the second request is there already when the first one ends
        first = head("POST", "/adapt", door.authorization, "Content-Type: application/json", "Content-Length: 400000")
        connection.sendall(first + b" " * 400_000 + head("GET", "/adapters", "X-Request-ID: pipelined"))
        answer = b""
        while b"pipelined" not in answer:
            part = connection.recv(65536)
            assert part, answer
            answer += part
    with connect(door.service) as connection:
        connection.sendall(first + b" " * 400_000)
        assert read_answer(connection)[0] == 422
        connection.sendall(head("GET", "/adapters", "X-Request-ID: afterwards"))
        assert read_answer(connection)[0] == 401

    def lines() -> list[str]:
        return [line for line in door.service.log.read_text().splitlines() if re.search("pipelined|afterwards", line)]

    until(lambda: len(lines()) == 2, 5)  # a request is logged after its answer
    assert not [line for line in lines() if "tenant=" in line or "key=" in line]


def test_unread_bodies_and_connections_end(door: Door) -> None:
    with connect(door.service) as connection:
        connection.sendall(head("POST", "/healthz", "Content-Length: 7900000"))
        assert read_answer(connection)[0] == 413
        began = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 15:
                connection.sendall(b"x" * 100)
                time.sleep(0.1)
        assert 3 < time.monotonic() - began < 10


def test_half_sent_headers_are_closed_in_time(door: Door) -> None:
    half = b"GET /healthz HTTP/1.1\r\nHost: loc"
    with open_sockets() as connections:
        connections += [connect(door.service) for _ in range(30)]
        began = time.monotonic()
        for connection in connections[:20]:
            connection.sendall(half)
        for connection in connections[20:25]:  # a second request on a connection
            connection.sendall(head("GET", "/healthz") + half)
            assert read_answer(connection)[0] == 200
        trickled = threading.Thread(target=trickle, args=(connections[29], half))
        trickled.start()
        for connection in connections[:25]:
            status, headers, body = read_answer(connection)
            assert (status, headers["connection"], json.loads(body)["type"]) == (408, "close", "/problems/headers-too-slow")
        assert all(is_closed(connection) for connection in connections[:29])  # those that sent nothing get no answer
        assert time.monotonic() - began < 5
        trickled.join()
        assert time.monotonic() - began < 6
    with connect(door.service) as idle:
        idle.sendall(head("GET", "/healthz"))
        assert read_answer(idle)[0] == 200
        assert is_closed(idle)


def test_slow_bodies_get_408(door: Door) -> None:
    with connect(door.service) as connection:
        connection.sendall(head("POST", "/adapt", door.authorization, "Content-Type: application/json", "Content-Length: 5000"))
        began = time.monotonic()
        trickled = threading.Thread(target=trickle, args=(connection, b" " * 30))
        trickled.start()
        status, headers, body = read_answer(connection)
        assert 1.5 < time.monotonic() - began < 6
        assert (status, headers["connection"], json.loads(body)["type"]) == (408, "close", "/problems/body-too-slow")
        trickled.join()


def test_long_answers_are_not_cut(door: Door) -> None:
    """Ask for two answers that take 3 seconds, where no time-out of a connection exceeds 2 seconds."""
    headers, body = {"Authorization": f"Bearer {door.key}"}, {**BODY, "options": {"seed": 1}}
    worker = door.service.worker()
    worker.suspend()
    try:
        with httpx.Client(base_url=door.service.url, headers=headers, timeout=30) as http, ThreadPoolExecutor(1) as pool:
            adapter = http.post("/adapt", json=body).json()["adapter_id"]
            began = time.monotonic()
            waiting = pool.submit(http.post, "/adapt", json=body, headers={"Prefer": "wait=3"})
            with http.stream("GET", f"/adapters/{adapter}/events") as stream:
                lines = stream.iter_lines()
                assert next(lines)
                assert waiting.result().status_code == 202 and time.monotonic() - began > 2.5
                worker.resume()
                assert any("end" in line for line in lines)
    finally:
        worker.resume()


def test_connections_of_one_address_are_limited(door: Door) -> None:
    source = "127.0.0.7"
    with open_sockets() as connections:
        connections += [connect(door.service, source) for _ in range(CONNECTIONS)]
        for connection in connections:
            connection.sendall(head("GET", "/healthz"))
            assert read_answer(connection)[0] == 200
        with connect(door.service, source) as beyond:
            status, headers, body = read_answer(beyond)
            assert (status, headers["connection"], json.loads(body)["status"]) == (503, "close", 503)
            assert int(headers["retry-after"]) >= 1 and is_closed(beyond)
        with connect(door.service, "127.0.0.8") as other:
            other.sendall(head("GET", "/healthz"))
            assert read_answer(other)[0] == 200
    deadline = time.monotonic() + 5
    while True:  # the service sees within moments that they are closed
        with connect(door.service, source) as again:
            again.sendall(head("GET", "/healthz"))
            if read_answer(again)[0] == 200:
                break
        assert time.monotonic() < deadline
    assert "address=127.0.0.7" in door.service.log.read_text()


def test_wrong_keys_are_slowed_down_and_valid_ones_are_not(door: Door) -> None:
    source = "127.0.0.9"

    def ask(key: str, address: str = source) -> tuple[int, float, dict[str, str]]:
        with connect(door.service, address) as connection:
            began = time.monotonic()
            connection.sendall(head("GET", "/adapters", f"Authorization: Bearer {key}"))
            status, headers, _ = read_answer(connection)
            return status, time.monotonic() - began, headers

    assert [ask(WRONG)[0] for _ in range(FREE_FAILURES + 6)] == [401] * (FREE_FAILURES + 6)
    with ThreadPoolExecutor(20) as pool:
        wrong = [pool.submit(ask, WRONG) for _ in range(20)]
        time.sleep(0.2)
        valid = ask(door.key)
        answers = [answer.result() for answer in wrong]
    assert valid[0] == 200 and valid[1] < 0.8
    delayed = [seconds for status, seconds, _ in answers if status == 401]
    refused = [headers for status, _, headers in answers if status == 429]
    assert len(delayed) + len(refused) == 20 and 1 <= len(delayed) <= 2 * WAITING_OF_ADDRESS
    assert min(delayed) > 0.9 and all(int(headers["retry-after"]) >= 1 for headers in refused)
    assert ask(WRONG, "127.0.0.10")[1] < 0.8
    log = door.service.log.read_text()
    assert re.search(r"WARNING .*a wrong API key was sent.*address=127\.0\.0\.9", log) and "a" * 43 not in log


def test_every_answer_has_the_standard_headers(door: Door) -> None:
    key = {"Authorization": f"Bearer {door.key}"}
    http = door.service.http
    answers = [
        http.get("/adapters", headers=key),
        http.get("/adapters"),
        http.get("/nowhere", headers=key),
        http.post("/adapt", json={}, headers=key),
        http.get("/healthz"),
        http.get("/openapi.json"),
    ]
    assert [answer.status_code for answer in answers] == [200, 401, 404, 422, 200, 200]
    for answer in answers:
        assert answer.headers["cache-control"] == "no-store" and "server" not in answer.headers
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    for answer in [*answers, http.get("/docs"), http.get("/docs/start.js")]:
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"


def test_the_docs_page_loads_nothing_from_elsewhere(door: Door) -> None:
    http = door.service.http
    page = http.get("/docs")
    policy = page.headers["content-security-policy"]
    assert "script-src 'self'" in policy and "frame-ancestors 'none'" in policy and "://" not in policy + page.text
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {"/docs", *(f"/{name}" for name in files)} == DOCS_PATHS
    for name in files:
        assert http.get(f"/{name}").status_code == 200
    types = {name: http.get(f"/docs/{name}").headers["content-type"] for name in ("swagger-ui.css", "swagger-ui-bundle.js")}
    assert types == {"swagger-ui.css": "text/css; charset=utf-8", "swagger-ui-bundle.js": "text/javascript; charset=utf-8"}
    start = http.get("/docs/start.js").text
    assert '"openapi.json"' in start and "://" not in start and "validatorUrl: null" in start
    version = re.search(r'PACKAGE_VERSION:"(\d+)', http.get("/docs/swagger-ui-bundle.js").text)
    assert version is not None and int(version[1]) >= 5  # the first that shows OpenAPI 3.1
    assert http.get("/redoc", headers={"Authorization": f"Bearer {door.key}"}).status_code == 404


def test_a_stop_answers_what_runs_and_refuses_what_comes(environment: dict[str, str], tmp_path: Path) -> None:
    """Send SIGTERM while predictions run, a client waits, a stream is open and a body never ends."""
    settings = {"STOP_SECONDS": "5", "ALLOWED_HOSTS": "api.example.com", "FORWARDED_ALLOW_IPS": "127.0.0.1"}
    with served(tmp_path, {**environment, **settings, "MAX_BODY_BYTES": "8000000"}) as service:
        service.wait_ready()
        http = service.http
        assert http.get("/adapters", headers={"Host": "api.example.com"}).status_code == 200
        assert http.get("/adapters", headers={"Host": "other.example.com"}).json()["type"] == "/problems/unknown-host"
        http.get("/adapters", headers={"Authorization": f"Bearer {WRONG}", "X-Forwarded-For": "203.0.113.5"})
        assert "address=203.0.113.5" in service.log.read_text()
        ready = http.post("/adapt", json=BODY, headers={"Prefer": "wait=30"})
        adapter = ready.json()["adapter_id"]
        worker = service.worker()
        worker.suspend()
        queued = http.post("/adapt", json={**BODY, "options": {"seed": 2}}).json()["adapter_id"]

        def predict_until_refused(caller: int) -> list[tuple[int, float, float]]:
            """Return the status, the start and the end of each prediction."""
            inputs = [f"{caller} {n} " + "order a pizza today " * 450 for n in range(64)]
            calls: list[tuple[int, float, float]] = []
            with httpx.Client(base_url=service.url, timeout=60) as client:
                while not calls or calls[-1][0] == 200:
                    began = time.monotonic()
                    status = client.post("/predict", json={"adapter_id": adapter, "inputs": inputs}).status_code
                    calls.append((status, began, time.monotonic()))
            return calls

        def wait() -> int:
            body = {**BODY, "options": {"seed": 3}}
            return httpx.post(f"{service.url}/adapt", json=body, headers={"Prefer": "wait=50"}, timeout=60).status_code

        def read_events() -> str:
            return httpx.get(f"{service.url}/adapters/{queued}/events", timeout=60).text

        unfinished = connect(service)
        unfinished.sendall(head("POST", "/adapt", "Content-Type: application/json", "Content-Length: 200000") + b" " * 150_000)
        with ThreadPoolExecutor(8) as pool:
            predictions = [pool.submit(predict_until_refused, caller) for caller in range(4)]
            waiting, events = pool.submit(wait), pool.submit(read_events)
            time.sleep(1)
            service.process.send_signal(signal.SIGTERM)
            stopped_at = time.monotonic()
            time.sleep(0.2)
            refused = [http.get("/adapters"), httpx.get(f"{service.url}/adapters"), http.get("/readyz")]
            assert http.get("/healthz").status_code == 200
            assert time.monotonic() - stopped_at < 3
            assert waiting.result(5) == 202
            assert events.result(5).startswith("event: status")
            worker.resume()
            calls = [call for caller in predictions for call in caller.result()]
            started_before = [call for call in calls if call[1] < stopped_at - 0.1]  # the last ones may have arrived after it
            assert {status for status, _, _ in started_before} == {200}
            assert any(end > stopped_at for _, _, end in started_before)
            last = [caller.result()[-1] for caller in predictions]
            assert [status for status, began, _ in last if began > stopped_at - 0.1] == [503] * 4
        assert [answer.status_code for answer in refused] == [503] * 3 and refused[2].json()["missing"] == ["service"]
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        status, _, body = read_answer(unfinished)
        assert (status, json.loads(body)["type"]) == (503, "/problems/unavailable")
        assert service.process.wait(20) == 0 and 4 < time.monotonic() - stopped_at < 20
        unfinished.close()
