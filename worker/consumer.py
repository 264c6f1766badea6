"""Consume wake-ups: reconnect to the broker quickly, and acknowledge no message."""

import logging
from typing import Any

from celery.worker.consumer import Consumer
from celery.worker.state import maybe_shutdown
from kombu.messaging import Consumer as MessageConsumer

log = logging.getLogger(__name__)


class PromptConsumer(Consumer):  # type: ignore[misc]
    """A Celery consumer that retries a lost connection after 0.5 s, then at intervals that grow to 2 s.

    Celery's own delay grows to 30 seconds.
    """

    def ensure_connected(self, conn: Any) -> Any:
        def log_retry(error: Exception, pause: float) -> None:
            log.warning("the broker is out of reach (%s), trying again in %.1f s", type(error).__name__, pause)

        conn.ensure_connection(log_retry, interval_start=0.5, interval_step=0.5, interval_max=2, callback=maybe_shutdown)
        return super().ensure_connected(conn)  # returns at once: the connection is established

    def call_soon_ack(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """Do nothing. Celery calls this to acknowledge messages, which were removed when they were read."""
        return p


class UnacknowledgedMessages(MessageConsumer):
    """A consumer of messages that need no acknowledgement.

    Acknowledging a message costs two writes to the server's disk, one before the job begins and one before the next message is
    read. A wake-up is worth neither: if a worker dies with it, the reaper of another one announces the job again.
    """

    no_ack = True
