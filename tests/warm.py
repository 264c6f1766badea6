"""Start Python modules quickly: as forks of a process with all imports.

Imports take most of the time of a start: about five seconds of a core. The fork then does what `python -m MODULE` does. Tests of
the start itself start `python -m` instead.
"""

import functools
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.running.end_with_parent import tie_to_parent

ROOT = Path(__file__).resolve().parents[1]


class Forked:
    """A forked process, with the methods of `subprocess.Popen` that the tests use."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = threading.Event()

    def end(self, status: int) -> None:
        self.returncode = os.waitstatus_to_exitcode(status)
        self._ended.set()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Warm:
    """A process that forks others on request. All of them end with this process."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.warm"]
        self._starter = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self._started: dict[int, Forked] = {}
        self._starting, self._changed = threading.Lock(), threading.Condition()
        self._newest: Forked | None = None
        threading.Thread(target=self._read, name="warm", daemon=True).start()

    def start(self, module: str, *arguments: str, environment: Mapping[str, str], log: Path) -> Forked:
        """Run a module in a new process with this environment. Its output is appended to `log`."""
        request = {"module": module, "arguments": arguments, "environment": dict(environment), "log": str(log)}
        assert self._starter.stdin is not None
        log.touch()  # so that it can be read at once
        with self._starting, self._changed:
            self._newest = None
            self._starter.stdin.write(json.dumps(request) + "\n")
            assert self._changed.wait_for(lambda: self._newest is not None, 120), "the starter of processes does not answer"
            assert self._newest is not None
            return self._newest

    def _read(self) -> None:
        """Read the process ids of new processes, and the statuses of those that have ended."""
        assert self._starter.stdout is not None
        for line in self._starter.stdout:
            message = json.loads(line)
            with self._changed:
                if "status" in message:
                    self._started.pop(message["pid"]).end(message["status"])
                else:
                    self._newest = self._started[message["pid"]] = Forked(message["pid"])
                    self._changed.notify_all()


@functools.cache
def warm() -> Warm:
    """Return the starter of this process."""
    return Warm()


def _answer(**message: int) -> None:
    print(json.dumps(message), flush=True)


def _report_ended() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _answer(pid=pid, status=status)


def _fork_on_request() -> dict[str, Any]:
    """Fork a process for each line of standard input, and return its request in the new process.

    In the starter itself this ends the process, once standard input is closed.
    """
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    requests, starter = os.fdopen(os.dup(0), "rb", buffering=0), os.getpid()
    while True:
        ready, _, _ = select.select([requests.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _report_ended()
        if requests.fileno() not in ready:
            continue
        if not (line := requests.readline()):
            os._exit(0)
        if (pid := os.fork()) == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            os.close(woken)
            os.close(wake)
            return {**json.loads(line), "starter": starter}
        _answer(pid=pid)


def _become(request: Mapping[str, Any]) -> None:
    """Give this process the environment, the files and the arguments of a new one.

    It ends with the starter.
    """
    tie_to_parent(request["starter"])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(nothing)
    os.environ.clear()
    os.environ.update(request["environment"])
    path = request["environment"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [folder for folder in path if folder not in ("", *sys.path)]
    sys.argv = [request["module"], *request["arguments"]]


if __name__ == "__main__":
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as service and worker set it, before torch is imported
    import service.running.serving  # noqa: F401
    import worker.process  # noqa: F401

    wanted = _fork_on_request()
    _become(wanted)
    runpy.run_module(wanted["module"], run_name="__main__", alter_sys=True)
