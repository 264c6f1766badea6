"""Ties a process to the life of the one that started it (Linux): when that one is gone, however it went, so is this one.

As a command, `python -m service.running.end_with_parent PARENT_PID COMMAND …` ties itself and then becomes COMMAND.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def tie_to_parent(parent: int, with_signal: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to send `with_signal` here when the parent dies; exits at once where `parent` is already gone.

    Raises OSError where the kernel has no such thing (not Linux): then nothing would clean up after a killed parent.
    """
    if not sys.platform.startswith("linux"):
        raise OSError("the embedded server and worker need Linux; set REDIS_URL and start the parts yourself")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(with_signal), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) was refused")
    if os.getppid() != parent:  # it went before the kernel was asked
        sys.exit(0)


if __name__ == "__main__":
    tie_to_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
