"""Wake-ups that are written with the record of a job are what Celery itself would send."""

import json
from typing import Any

import pytest
import redis

from tests.conftest import RedisServer
from tests.worker.ledger.jobs import DAY, RECIPE
from worker.app import celery_app
from worker.ledger import names
from worker.ledger.messages import ADAPT_TASK, IN_TURN, wake_up
from worker.ledger.records import Records
from worker.reaper import oldest_wake_up
from worker.wake_ups import wake_up_message

CHOSEN_AT_RANDOM = ("headers.id", "headers.root_id", "properties.correlation_id", "properties.delivery_tag")


def flat(message: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a JSON object by their path, such as `headers.id`."""
    if not isinstance(message, dict):
        return {prefix: message}
    return {path: leaf for name, each in message.items() for path, leaf in flat(each, f"{prefix}.{name}".strip(".")).items()}


def test_a_wake_up_in_the_step_that_accepts_a_job_is_the_message_that_celery_sends(
    redis_server: RedisServer, redis_client: "redis.Redis"
) -> None:
    """Detect a change in the message formats of Celery and kombu."""
    app, key = celery_app(redis_server.url, "q"), names.wake_ups("q", IN_TURN)
    app.send_task(ADAPT_TASK, kwargs=wake_up("t", "a1"), priority=IN_TURN, queue="q")
    sent: Any = redis_client.rpop(key)
    Records(redis_client).accept("t", "a1", RECIPE, DAY, (), queue="q", wake_up=wake_up_message(app, "t", "a1", "q"))
    assert redis_client.llen(key) == 1 and oldest_wake_up(redis_client, "q") == ("t", "a1")
    written: Any = redis_client.rpop(key)
    told, expected = flat(json.loads(written)), flat(json.loads(sent))
    assert set(told) == set(expected)
    for path in CHOSEN_AT_RANDOM:
        assert len(told[path]) == len(expected[path]) and told.pop(path) != expected.pop(path)
    assert told.pop("properties.reply_to") == "" != expected.pop("properties.reply_to")  # no answer is sent: results are ignored
    assert told == expected
    app.close()


@pytest.mark.parametrize("database", ["", "?db=1"])
def test_celery_reads_wake_ups_from_the_database_of_the_records(redis_server: RedisServer, database: str) -> None:
    client, app = redis.Redis.from_url(redis_server.url + database), celery_app(redis_server.url + database, "q")
    Records(client).accept("t", "a1", RECIPE, DAY, (), queue="q", wake_up=wake_up_message(app, "t", "a1", "q"))
    with app.connection_for_read() as connection, connection.SimpleQueue("q") as queue:
        message = queue.get(timeout=5)
        message.ack()
    assert message.headers["task"] == ADAPT_TASK and message.payload[1] == wake_up("t", "a1")
    client.flushdb()
    client.close()
    app.close()


def test_only_a_new_job_gets_a_wake_up(redis_client: "redis.Redis") -> None:
    records, key = Records(redis_client), names.wake_ups("q", IN_TURN)
    for _ in range(2):
        records.accept("t", "a1", RECIPE, DAY, (), queue="q", wake_up="told")
    assert redis_client.lrange(key, 0, -1) == [b"told"]
    records.accept("t", "a2", RECIPE, DAY, (), queue="q", wake_up="told", limits={"MAX_JOBS": 9})
    assert redis_client.llen(key) == 2
