"""The reaper reads wake-up messages from a Celery queue."""

import redis

from tests.conftest import RedisServer
from worker.app import celery_app
from worker.ledger import names
from worker.ledger.messages import ADAPT_TASK, FIRST, IN_TURN, wake_up
from worker.reaper import oldest_wake_up


def test_the_oldest_wake_up_is_read_from_the_queue_itself(redis_server: RedisServer, redis_client: "redis.Redis") -> None:
    """Detect a change in kombu's message format, which is internal and which the reaper reads."""
    app = celery_app(redis_server.url, "q")
    assert oldest_wake_up(redis_client, "q") is None
    for name, priority in (("lost", FIRST), ("a1", IN_TURN), ("a2", IN_TURN)):
        app.send_task(ADAPT_TASK, kwargs=wake_up("t", name), priority=priority)
    assert oldest_wake_up(redis_client, "q") == ("t", "a1")
    redis_client.delete(f"{names.CELERY_PREFIX}q\x06\x16{IN_TURN}")
    assert oldest_wake_up(redis_client, "q") == ("t", "lost")
    app.close()
