"""End a process when its parent process ends, even if the parent is killed with SIGKILL. Linux only.

`python -m service.running.end_with_parent PARENT_PID COMMAND …` runs COMMAND in this way; COMMAND replaces the Python process.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def tie_to_parent(parent: int, with_signal: signal.Signals = signal.SIGKILL) -> None:
    """Make the kernel send `with_signal` to this process when its parent dies.

    `parent` is the parent's process id. If the parent is already dead, exit. Raises OSError if the kernel does not support this
    (only Linux does), because this process would then outlive a killed parent.
    """
    if not sys.platform.startswith("linux"):
        raise OSError("the embedded server and worker need Linux; set REDIS_URL and start the parts yourself")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(with_signal), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) was refused")
    if os.getppid() != parent:  # the parent died before the call
        sys.exit(0)


if __name__ == "__main__":
    tie_to_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
