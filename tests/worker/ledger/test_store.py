"""The weight store, which keeps adapter weights in the cache."""

import pytest
import redis

from tests.worker.ledger.jobs import DAY
from worker.errors import WeightsCorrupt, WeightsMissing
from worker.ledger.weights_cache import WeightStore, weights_digest


def test_weights_are_checked_on_the_way_out(redis_client: "redis.Redis") -> None:
    store = WeightStore(redis_client)
    store.put("t", "a1", 7, b"weights", DAY)
    assert store.get("t", "a1", 7, weights_digest(b"weights")) == b"weights"
    assert store.has("t", "a1", 7) and store.keep("t", "a1", 7, DAY)
    for tenant, fence in (("t", 8), ("other", 7)):
        with pytest.raises(WeightsMissing):
            store.get(tenant, "a1", fence, weights_digest(b"weights"))
    redis_client.set("qs:t:weights:a1:7", b"weightz", keepttl=True)
    with pytest.raises(WeightsCorrupt):
        store.get("t", "a1", 7, weights_digest(b"weights"))
    assert not store.has("t", "a1", 7)
    assert all(redis_client.ttl(key) > 0 for key in redis_client.scan_iter("qs:*:weights:*"))
