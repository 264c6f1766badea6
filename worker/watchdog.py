"""The watchdog: it ends a worker process that hangs inside a step.

Deadlines are looked at between steps, and heartbeats come from a thread of their own. So a step that never returns, such as a
deadlock in a library, would keep its jobs for ever. The watchdog knows how long the current work may take. `HANG_SECONDS` after
that, it logs where all threads are, hands the jobs back and ends the process with status `HUNG_STATUS`. Whatever supervises the
worker then starts a new one.
"""

import contextlib
import faulthandler
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from worker.heartbeat import HeldJob

log = logging.getLogger(__name__)
HUNG_STATUS = 75
"""The exit status of a worker that hung (EX_TEMPFAIL in sysexits.h)."""
_TICK_SECONDS = 0.2
_HAND_BACK_SECONDS = 5.0
_BACKSTOP_SECONDS = 15.0
"""Time after the watchdog should have ended the process until `faulthandler` does, which needs no Python thread. Native code that
holds the interpreter's lock stops all of these, also the watchdog. Heartbeats then stop too, but the process would stay.

The watchdog starts this time again with each tick. So of the time in which the process is suspended, only one pause that is longer
than all of it ends the process: `faulthandler` cannot tell it from a hang."""
_STDERR = 2
"""The file descriptor. Celery replaces `sys.stderr` by an object without one."""


@dataclass(eq=False)
class _Work:
    """One piece of the present work of a worker.

    `left`: seconds until it counts as hung, while this process is not suspended.
    """

    jobs: Collection[HeldJob]
    allowed: float
    left: float


class Watchdog:
    """Ends the process if the work of a `limit` block takes too long. Several threads may each have one.

    Does nothing until `start` is called. `margin`: how much longer than its limit work may take, in seconds.
    """

    def __init__(self, margin: float) -> None:
        self._margin = margin
        self._works: list[_Work] = []
        self._lock = threading.Lock()  # held while `_works` changes, so that no backstop is set for work that has ended
        self._hand_back: Callable[[Collection[HeldJob], str], None] | None = None

    def start(self, hand_back: Callable[[Collection[HeldJob], str], None]) -> None:
        """Start watching.

        `hand_back(jobs, reason)` is called before the process ends; `jobs` are those of the work that hangs.
        """
        self._hand_back = hand_back
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextlib.contextmanager
    def limit(self, seconds: float, jobs: Collection[HeldJob]) -> Iterator[None]:
        """End the process if the block takes longer than `seconds` and the margin.

        `jobs`: the jobs that the block works on. The collection may change meanwhile.
        """
        work = _Work(jobs, seconds, seconds + self._margin)
        with self._lock:
            self._works.append(work)
            self._set_backstop()
        try:
            yield
        finally:
            with self._lock:
                self._works.remove(work)
                self._set_backstop()

    def _set_backstop(self) -> None:
        """Start the time of `faulthandler` again, for the work that may take longest, if there is any."""
        if self._hand_back is None:
            return
        if not self._works:
            faulthandler.cancel_dump_traceback_later()
            return
        backstop = max(work.allowed for work in self._works) + self._margin + _BACKSTOP_SECONDS
        faulthandler.dump_traceback_later(backstop, exit=True, file=_STDERR)

    def _watch(self) -> None:
        while True:
            time.sleep(_TICK_SECONDS)
            with self._lock:
                if self._works:
                    self._set_backstop()
                for work in self._works:
                    work.left -= _TICK_SECONDS  # not the time that has passed: while the whole process is suspended, nothing hangs
                hanging = next((work for work in self._works if work.left < 0), None)
            if hanging is not None:
                self._end(hanging)

    def _end(self, work: _Work) -> None:
        reason = f"its worker hung: no end {self._margin:g} s after the limit of {work.allowed:g} s"
        log.error("this worker hangs, ending it with status %d; its threads are at\n%s", HUNG_STATUS, places_of_threads())
        handing_back = threading.Thread(target=self._try_to_hand_back, args=(list(work.jobs), reason), daemon=True)
        handing_back.start()
        handing_back.join(_HAND_BACK_SECONDS)  # if Redis cannot be reached, the leases run out instead
        logging.shutdown()
        os._exit(HUNG_STATUS)

    def _try_to_hand_back(self, jobs: Collection[HeldJob], reason: str) -> None:
        assert self._hand_back is not None
        try:
            self._hand_back(jobs, reason)
        except Exception as error:  # whatever happens here, the process must end
            log.warning("the jobs were not handed back: %s", type(error).__name__)


def places_of_threads() -> str:
    """Return the stack of every thread of this process: files, lines and functions, but no values."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    stacks = [
        f"thread {names.get(number, number)}\n{''.join(traceback.format_stack(frame))}"
        for number, frame in sys._current_frames().items()
    ]
    return "".join(stacks).rstrip()
