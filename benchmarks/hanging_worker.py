"""A worker that hangs for ever in an inner step once it gets SIGUSR2.

It is started with `python -m benchmarks.hanging_worker`.
"""

import signal
import threading
from collections.abc import Sequence
from typing import Any

from worker.__main__ import main
from worker.ledger.messages import JobRecipe


def hang_when_asked() -> None:
    """Replace the inner loop of this process by one whose next step never ends after SIGUSR2."""
    from worker.runtime import Runtime

    asked = threading.Event()
    signal.signal(signal.SIGUSR2, lambda *_: asked.set())
    adapt_together = Runtime.adapt_together

    def hanging(self: Runtime, recipes: Sequence[JobRecipe], *, on_step: Any = None, **options: Any) -> Any:
        def in_step(losses: dict[int, float]) -> None:
            if asked.is_set():
                threading.Event().wait()
            on_step(losses)

        return adapt_together(self, recipes, on_step=in_step, **options)

    Runtime.adapt_together = hanging  # type: ignore[method-assign]


if __name__ == "__main__":
    hang_when_asked()
    main()
