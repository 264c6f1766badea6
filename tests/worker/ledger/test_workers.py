"""The ledger's list of workers that are alive."""

import redis

from worker.ledger.records import Records


def test_workers_are_counted_by_queue_while_they_are_alive(records: Records, redis_client: "redis.Redis") -> None:
    for number, queue in enumerate(("q", "q", "r")):
        records.workers.announce(f"w{number}", {"queue": queue}, 10)
    assert records.workers.by_queue() == {"q": 2, "r": 1}
    records.workers.remove("w0")
    records.workers.announce("w1", {"queue": "r"}, 10)
    assert records.workers.by_queue() == {"r": 2}
    redis_client.zadd("qs:workers", {"w1": 1})  # its announcement has expired
    assert records.workers.by_queue() == {"r": 1}
    records.workers.announce("w2", {"queue": "r"}, 10)
    assert redis_client.hkeys("qs:worker-descriptions") == [b"w2"]
