"""Celery's consumer, with less patience between attempts to reach the broker: its own pause grows to 30 seconds."""

import logging
from typing import Any

from celery.worker.consumer import Consumer
from celery.worker.state import maybe_shutdown

log = logging.getLogger(__name__)


class PromptConsumer(Consumer):  # type: ignore[misc]
    """Tries again after half a second, and every two seconds from the fourth time on."""

    def ensure_connected(self, conn: Any) -> Any:
        def tell(error: Exception, pause: float) -> None:
            log.warning("the broker is out of reach (%s), trying again in %.1f s", type(error).__name__, pause)

        conn.ensure_connection(tell, interval_start=0.5, interval_step=0.5, interval_max=2, callback=maybe_shutdown)
        return super().ensure_connected(conn)  # which finds it connected
