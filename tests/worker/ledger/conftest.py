import pytest
import redis

from worker.ledger.records import Records


@pytest.fixture
def records(redis_client: "redis.Redis") -> Records:
    return Records(redis_client)
