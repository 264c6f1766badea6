"""The ledger's counts of events and of stage durations."""

import time

from tests.worker.ledger.jobs import DAY, RECIPE, claimed
from worker.ledger.messages import Outcome
from worker.ledger.records import Records


def test_events_are_counted(records: Records) -> None:
    assert records.counts.read() == {"now_queued": 0, "now_running": 0}
    for identity in ("a1", "a2", "a3"):
        records.accept("t", identity, RECIPE, DAY, ())
    stale = claimed(records, "a1", lease_ms=1)
    time.sleep(0.005)
    fresh = claimed(records, "a1")
    assert not records.claims.heartbeat(stale, 1000) and not records.claims.commit(stale, Outcome(status="ready", digest="f"))
    assert records.claims.commit(fresh, Outcome(status="ready", digest="f"))
    assert records.claims.commit(claimed(records, "a2"), Outcome(status="failed", error="because"))
    claimed(records, "a3")
    ready = records.get("t", "a1")
    assert ready is not None and records.requeue(ready, "corrupt")
    counts = records.counts.read()
    assert 0 <= counts.pop("recovery_ms") < 1000
    assert {counts.pop(name) for name in list(counts) if name.startswith("recovery_le_")} == {1}
    assert counts == {
        "accepted": 3,
        "attempts": 4,
        "lost_workers": 1,
        "recoveries": 1,
        "overtaken": 1,
        "refused_commits": 1,
        "ready": 1,
        "failed": 1,
        "recomputed": 1,
        "corrupt": 1,
        "now_queued": 1,
        "now_running": 1,
    }
    for identity in ("a1", "a2", "a3"):
        records.delete("t", identity)
    assert {name: n for name, n in records.counts.read().items() if name.startswith("now_")} == {"now_queued": 0, "now_running": 0}


def test_times_are_counted_by_stage(records: Records) -> None:
    records.counts.observe({"queue": (4.0,), "inner_step": (1.0, 7.5)})
    records.counts.observe({"inner_step": (60.25,)})
    counts = records.counts.read()
    assert (counts["stage_inner_step_count"], counts["stage_inner_step_us"], counts["stage_queue_us"]) == (3, 68_750, 4_000)
    bounds = (1, 5, 10, 50, 100)
    assert [counts.get(f"stage_inner_step_le_{bound}", 0) for bound in bounds] == [1, 1, 2, 2, 3]
