"""Retention removes old records and no others."""

import redis

from tests.worker.ledger.jobs import DAY, RECIPE
from worker.ledger.records import Records


def test_no_record_can_be_evicted_and_old_ones_are_retired(records: Records, redis_client: "redis.Redis") -> None:
    records.accept("t", "a1", RECIPE, DAY, ())
    records.accept("t", "a2", RECIPE, DAY, ())
    assert all(redis_client.ttl(key) == -1 for key in redis_client.scan_iter("qs:*"))
    assert records.retention.retire() == []
    redis_client.zadd("qs:retire", {"t/a1": 1})
    assert records.retention.retire() == [("t", "a1", 0)]
    assert records.get("t", "a1") is None and records.get("t", "a2") is not None
    assert [record.adapter_id for record in records.page("t", 10, None)[0]] == ["a2"]
