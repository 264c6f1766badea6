"""Dead jobs: jobs that have used up their attempts."""

import time

from tests.worker.ledger.jobs import DAY, RECIPE, claim, claimed
from worker.ledger.messages import Outcome
from worker.ledger.records import Records


def test_dead_jobs_stay_listed_until_requested_again_revived_or_deleted(records: Records) -> None:
    for identity in ("a1", "a2"):
        records.accept("t", identity, RECIPE, DAY, ())
        claimed(records, identity, lease_ms=1)
        time.sleep(0.005)
        assert claim(records, identity, attempts=1) is None
    assert [dead.adapter_id for dead in records.dead_jobs.latest()] == ["a2", "a1"]
    assert records.accept("t", "a1", RECIPE, DAY, ()) == (True, "queued")  # requested again, so no longer dead
    assert [dead.adapter_id for dead in records.dead_jobs.latest()] == ["a2"]
    assert records.dead_jobs.revive("t", "a2") and not records.dead_jobs.revive("t", "a1")
    record = records.get("t", "a2")
    assert record is not None and (record.status, record.attempt, record.error) == ("queued", 0, None)
    claimed(records, "a2", lease_ms=1)
    time.sleep(0.005)
    assert claim(records, "a2", attempts=1) is None
    assert len(records.dead_jobs.latest()) == 1
    records.delete("t", "a2")
    assert records.dead_jobs.latest() == []


def test_a_revived_job_gets_a_new_ttl(records: Records) -> None:
    records.accept("t", "a1", RECIPE, 300, ())
    claimed(records, lease_ms=1)
    time.sleep(0.31)
    assert claim(records, attempts=1) is None and records.dead_jobs.revive("t", "a1")
    records.accept("t", "a2", RECIPE, DAY, ())
    assert records.waiting.due(oldest={"": ("t", "a2")}) == [("t", "a1", "")]  # at once, regardless of other wake-ups
    records.claims.commit(claimed(records), Outcome(status="ready", digest="f"))
    record = records.get("t", "a1")
    assert record is not None and record.status == "ready"
