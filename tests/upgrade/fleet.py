"""Services and workers of several versions that share one Redis server."""

import json
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import redis

from tests.upgrade.checkout import command, environment

log = logging.getLogger(__name__)
_START_SECONDS = 240.0
_STOP_SECONDS = 40.0


@dataclass(frozen=True)
class Version:
    """The code of one commit, with the settings of its services and workers."""

    name: str
    code: Path
    settings: Mapping[str, str]


@dataclass(frozen=True)
class Part:
    """A running service or worker. `url` is empty for a worker."""

    version: Version
    process: "subprocess.Popen[bytes]"
    log: Path
    url: str = ""


class Fleet:
    """Starts and stops services and workers. Every started process is ended by `close`.

    `folder`: a folder for logs. `redis_url`: the server of queue, records and weights.
    """

    def __init__(self, folder: Path, redis_url: str) -> None:
        self._folder, self._redis_url = folder, redis_url
        self._client = redis.Redis.from_url(redis_url)
        self._parts: list[Part] = []

    def start_worker(self, version: Version) -> Part:
        """Start a worker, and wait until it has announced itself."""
        part = self._start(version, "worker", [sys.executable, "-m", "worker"])
        self._wait(part, lambda: any(name.endswith(b"-%d" % part.process.pid) for name in self._announced()))
        return part

    def start_service(self, version: Version) -> Part:
        """Start a service, and wait until it is ready, which requires a worker of its queue."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        data = self._folder / f"data-{port}"
        arguments = [*command("quickstudy", version.code), "serve", "--port", str(port), "--data-dir", str(data)]
        part = self._start(version, "service", arguments, f"http://127.0.0.1:{port}")
        self._wait(part, lambda: _is_ready(part.url))
        return part

    def stop(self, *parts: Part) -> None:
        """Send SIGTERM to all `parts`, and wait until they have ended. Fails if one of them has to be killed."""
        for part in parts:
            part.process.send_signal(signal.SIGTERM)
        for part in parts:
            try:
                part.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                raise AssertionError(
                    f"a {_title(part)} did not stop within {_STOP_SECONDS:g} s:\n{part.log.read_text()[-3000:]}"
                ) from None
            log.info("stopped a %s", _title(part))

    def create_key(self, version: Version, tenant: str) -> str:
        """Create an API key with the command line of `version`, and return it."""
        arguments = [*command("quickstudy", version.code), "keys", "create", "--tenant", tenant, "--json"]
        variables = environment(version.code, {**version.settings, "REDIS_URL": self._redis_url})
        done = subprocess.run(arguments, cwd=version.code, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["key"])

    def close(self) -> None:
        """Kill everything that still runs."""
        for part in self._parts:
            if part.process.poll() is None:
                part.process.kill()
            part.process.wait()
        self._client.close()

    def _start(self, version: Version, kind: str, arguments: list[str], url: str = "") -> Part:
        log = self._folder / f"{len(self._parts)}-{kind}-{version.name}.log"
        variables = environment(version.code, {**version.settings, "REDIS_URL": self._redis_url})
        with log.open("wb") as output:
            process = subprocess.Popen(
                arguments, cwd=version.code, env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self._parts.append(Part(version, process, log, url))
        return self._parts[-1]

    def _announced(self) -> list[bytes]:
        announced: list[bytes] = self._client.zrange("qs:workers", 0, -1)  # type: ignore[assignment]
        return announced

    def _wait(self, part: Part, started: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not started():
            if part.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"a {_title(part)} did not start:\n{part.log.read_text()[-3000:]}")
            time.sleep(0.1)
        log.info("started a %s", _title(part))


def _title(part: Part) -> str:
    return f"{'service' if part.url else 'worker'} of version {part.version.name}"


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=10).status_code == 200
    except httpx.TransportError:
        return False
