"""The names under which workers announce themselves: `HOST-PID`."""

import os
import re
import socket
from collections.abc import Iterable


def worker_name() -> str:
    """Return the name of the worker in this process."""
    return f"{socket.gethostname()}-{os.getpid()}"


def on_this_host(names: Iterable[str]) -> list[str]:
    """Return those names that belong to workers on this host; a container has one worker."""
    own = re.compile(rf"{re.escape(socket.gethostname())}-\d+")
    return [name for name in names if own.fullmatch(name)]
