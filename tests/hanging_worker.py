"""Real workers in which the inner loops of some jobs never end: `python -m tests.hanging_worker`.

This process runs one worker at a time, as a fork, and starts another one whenever it ends.

A job with the seed `HANGS` waits for ever in its first inner step. One with the seed `HOLDS_LOCK` does so in native code that holds
the interpreter's lock, so that no other thread of the worker runs either.
"""

import ctypes
import os
import threading
from collections.abc import Sequence
from typing import Any

from service.running.end_with_parent import tie_to_parent
from worker.__main__ import main
from worker.ledger.messages import JobRecipe

HANGS, HOLDS_LOCK = 666, 667


def hang(seeds: set[int]) -> None:
    if HANGS in seeds:
        threading.Event().wait()
    if HOLDS_LOCK in seeds:
        ctypes.PyDLL(None).sleep(100_000)


def hang_in_first_step() -> None:
    """Replace the inner loop of this process by one that hangs for the two seeds."""
    import worker.process  # noqa: F401  (imports all that a worker needs, so that each fork starts quickly)
    from worker.runtime import Runtime

    adapt_together = Runtime.adapt_together

    def hanging(self: Runtime, recipes: Sequence[JobRecipe], *, on_step: Any = None, **options: Any) -> Any:
        def in_step(losses: dict[int, float]) -> None:
            hang({recipe.seed for recipe in recipes})
            on_step(losses)

        return adapt_together(self, recipes, on_step=in_step, **options)

    Runtime.adapt_together = hanging  # type: ignore[method-assign]


def supervise() -> None:
    """Run one worker after another, and print the exit status of each."""
    hang_in_first_step()
    parent = os.getpid()
    while True:
        if (child := os.fork()) == 0:
            tie_to_parent(parent)
            main()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(f"worker ended with status {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    supervise()
