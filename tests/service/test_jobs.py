"""The service's side of the job queue, on a real Redis server."""

import pytest
import redis

from service.adapting.jobs import Jobs
from tests.conftest import RedisServer
from tests.worker.ledger.jobs import DAY, RECIPE
from tests.worker.ledger.test_usage import ready
from worker.app import celery_app
from worker.errors import LimitReached
from worker.initializations import KnownInitializations
from worker.ledger.initializations import StoredInitialization
from worker.ledger.records import Records


def test_adapters_are_adapted_again_only_within_the_limit_of_jobs(redis_server: RedisServer, redis_client: "redis.Redis") -> None:
    records = Records(redis_client)
    jobs = Jobs(
        records,
        celery_app(redis_server.url, "q"),
        redis_server.url,
        lambda tenant: {"MAX_JOBS": 2},
        lambda recipe: 1,
        KnownInitializations([]),
    )
    records.initializations.store(
        RECIPE.initialization_digest, StoredInitialization(b"stored before", "plain", "base", "tiny", "classes")
    )
    for identity in ("a1", "a2", "a3"):
        assert jobs.start("t", identity, RECIPE, DAY, (), queue="q", cost=1) == "queued"
        ready(records, "t", identity, 1)
    evicted = [record for identity in ("a1", "a2", "a3") if (record := records.get("t", identity)) is not None]
    for record in evicted[:2]:
        jobs.readapt(record, "evicted", "q")
    with pytest.raises(LimitReached) as refused:
        jobs.readapt(evicted[2], "evicted", "q")
    assert (refused.value.limit, refused.value.most, refused.value.used) == ("MAX_JOBS", 2, 2)
    ready(records, "t", "a1", 1)
    jobs.readapt(evicted[2], "evicted", "q")
    last = records.get("t", "a3")
    assert last is not None and last.status == "queued" and last.readapting
