"""Aliases on a real Redis server: they move atomically and never point at a missing adapter."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from tests.worker.ledger.jobs import DAY, RECIPE, claimed
from worker.errors import AdapterAliased, LimitReached
from worker.ledger.aliases import HISTORY, Aliases, Moved, RolledBack, is_adapter_id, is_alias
from worker.ledger.messages import Outcome
from worker.ledger.notes import Notes
from worker.ledger.records import Records


@pytest.fixture
def records(redis_client: "redis.Redis") -> Records:
    records = Records(redis_client)
    for identity in ("a1", "a2"):
        records.accept("t", identity, RECIPE, DAY, ())
    return records


@pytest.fixture
def aliases(redis_client: "redis.Redis", records: Records) -> Aliases:
    return Aliases(redis_client)


def test_an_alias_points_where_it_was_last_moved(aliases: Aliases) -> None:
    assert aliases.get("t", "live") is None and not aliases.remove("t", "live")
    assert aliases.point("t", "live", "a1") == Moved("set", None)
    assert aliases.point("t", "live", "a2") == Moved("set", "a1")
    assert aliases.point("t", "live", "a2") == Moved("set", "a2")
    assert aliases.point("t", "live", "unknown") == Moved("unknown", "a2")
    assert aliases.point("u", "live", "a1") == Moved("unknown", None)  # another tenant's adapter
    found = aliases.get("t", "live")
    assert found is not None and found.adapter_id == "a2" and found.updated_at > 1_600_000_000_000
    assert aliases.of("t", "a1") == [] and aliases.of("t", "a2") == ["live"]
    assert aliases.get("u", "live") is None
    assert aliases.remove("t", "live") and aliases.of("t", "a2") == [] and aliases.page("t", 9, None) == ([], None)


def test_an_alias_is_rolled_back_through_its_history(aliases: Aliases, records: Records) -> None:
    for identity in ("a3", "a4"):
        records.accept("t", identity, RECIPE, DAY, ())
    assert aliases.roll_back("t", "live") == RolledBack("unknown", "", "")
    for identity in ("a1", "a2", "a2", "a3", "a4"):  # a2 twice: the alias did not move
        aliases.point("t", "live", identity)
    assert [entry.adapter_id for entry in aliases.history("t", "live")] == ["a3", "a2", "a1"]
    records.delete("t", "a3")
    assert aliases.roll_back("t", "live") == RolledBack("set", "a2", "a4")  # a3 does not exist any more
    found = aliases.get("t", "live")
    assert found is not None and found.adapter_id == "a2" and aliases.of("t", "a2") == ["live"] and aliases.of("t", "a4") == []
    assert [entry.adapter_id for entry in aliases.history("t", "live")] == ["a1"]
    assert aliases.roll_back("t", "live") == RolledBack("set", "a1", "a2")
    assert aliases.roll_back("t", "live") == RolledBack("none", "a1", "a1")
    aliases.point("t", "live", "a2")
    aliases.remove("t", "live")
    assert aliases.history("t", "live") == []


def test_a_rollback_passes_over_failed_and_expired_adapters(
    aliases: Aliases, records: Records, redis_client: "redis.Redis"
) -> None:
    for identity in ("a3", "a4", "a5"):
        records.accept("t", identity, RECIPE, DAY, ())
    for identity in ("a1", "a2", "a3", "a4", "a5"):
        aliases.point("t", "live", identity)
    redis_client.hset("qs:t:adapter:a4", "status", "failed")
    redis_client.hset("qs:t:adapter:a3", mapping={"status": "ready", "expires_at": 1})
    redis_client.hset("qs:t:adapter:a2", mapping={"status": "ready", "expires_at": 1, "pinned": 1})
    assert aliases.roll_back("t", "live") == RolledBack("set", "a2", "a5")


def test_the_history_of_an_alias_is_bounded_and_ends_with_it(aliases: Aliases, records: Records) -> None:
    for _ in range(HISTORY):
        for identity in ("a1", "a2"):
            aliases.point("t", "live", identity)
    assert len(aliases.history("t", "live")) == HISTORY
    assert aliases.history("t", "live")[0].updated_at >= aliases.history("t", "live")[-1].updated_at
    aliases.point("t", "other", "a1")
    records.delete("t", "a2", only="over")  # not over yet
    assert len(aliases.history("t", "live")) == HISTORY


def test_a_tenant_has_at_most_the_allowed_number_of_aliases(aliases: Aliases) -> None:
    for name in ("one", "two"):
        aliases.point("t", name, "a1", most=2)
    with pytest.raises(LimitReached) as refused:
        aliases.point("t", "three", "a1", most=2)
    assert (refused.value.limit, refused.value.most, refused.value.used) == ("MAX_ALIASES", 2, 2)
    assert aliases.point("t", "two", "a2", most=2) == Moved("set", "a1")  # the alias exists already, so it is not one more
    assert aliases.remove("t", "one") and aliases.point("t", "three", "a1", most=2) == Moved("set", None)
    assert aliases.point("t", "four", "a1") == Moved("set", None)


def test_the_error_for_an_adapter_with_many_aliases_names_the_first_twenty(aliases: Aliases, records: Records) -> None:
    for number in range(30):
        aliases.point("t", f"n{number:02}", "a1")
    with pytest.raises(AdapterAliased, match=r"n18, n19 and 10 more$") as refused:
        records.delete("t", "a1")
    assert refused.value.aliases == [f"n{number:02}" for number in range(20)] and refused.value.number == 30


def test_an_alias_moves_only_from_the_expected_adapter(aliases: Aliases) -> None:
    assert aliases.point("t", "live", "a1", "a2") == Moved("moved", None)
    assert aliases.point("t", "live", "a1", None) == Moved("set", None)
    assert aliases.point("t", "live", "a2", None) == Moved("moved", "a1")
    assert aliases.point("t", "live", "a2", "a1") == Moved("set", "a1")
    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(lambda _: aliases.point("t", "live", "a1", "a2").verdict, range(40)))
    assert verdicts.count("set") == 1 and verdicts.count("moved") == 39


def test_pages_are_sorted_and_complete(aliases: Aliases) -> None:
    names = [f"n{i:02}" for i in range(7)] + ["n.x", "n-x", "n_x"]
    for name in names:
        aliases.point("t", name, "a1")
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page, cursor = aliases.page("t", 3, cursor)
        seen += [alias.alias for alias in page]
        if cursor is None:
            break
    assert seen == sorted(names) and aliases.of("t", "a1") == sorted(names)


def test_an_adapter_with_aliases_cannot_be_deleted_by_request(
    aliases: Aliases, records: Records, redis_client: "redis.Redis"
) -> None:
    aliases.point("t", "live", "a1")
    aliases.point("t", "test", "a1")
    with pytest.raises(AdapterAliased, match="live, test") as refused:
        records.delete("t", "a1")
    assert refused.value.aliases == ["live", "test"] and records.get("t", "a1") is not None
    aliases.point("t", "live", "a2")
    records.claims.commit(claimed(records), Outcome(status="ready", digest="f"))
    redis_client.zadd("qs:retire", {"t/a1": 1})
    assert [identity for _, identity, _ in records.retention.retire()] == ["a1"]  # the alias that points at it is removed too
    assert aliases.get("t", "test") is None and [alias.alias for alias in aliases.page("t", 9, None)[0]] == ["live"]
    assert aliases.remove("t", "live") and records.delete("t", "a2") is not None
    assert not list(redis_client.scan_iter("qs:t:alias*"))


@pytest.mark.parametrize("name", ["a", "live", "a.b-c_d", "0", "a" + "0" * 39, "b" + "0" * 40])
def test_allowed_names_of_aliases(name: str) -> None:
    assert is_alias(name)


@pytest.mark.parametrize("name", ["", "-a", "A", "a b", "a/b", "ä", "x" * 64, "a" + "0" * 40, "live\n"])
def test_refused_names_of_aliases(name: str) -> None:
    assert not is_alias(name) and is_adapter_id(name) == (len(name) == 41)


def test_notes_survive_a_new_start_of_the_job_and_change_independently(records: Records) -> None:
    records.accept("t", "a3", RECIPE, DAY, (), notes=Notes("one", ("x", "y"), "a1"))
    record = records.get("t", "a3")
    assert record is not None and (record.name, record.tags, record.parent) == ("one", ("x", "y"), "a1")
    records.accept("t", "a3", RECIPE, DAY, (), notes=Notes(tags=("z",)))
    records.claims.commit(claimed(records, "a3"), Outcome(status="failed", error="because"))
    records.accept("t", "a3", RECIPE, DAY, ())
    record = records.get("t", "a3")
    assert record is not None and (record.status, record.name, record.tags) == ("queued", "one", ("z",))
    assert records.annotate("t", "a3", Notes(name="", tags=())) and not records.annotate("t", "never", Notes("x"))
    record = records.get("t", "a3")
    assert record is not None and (record.name, record.tags, record.parent) == (None, (), "a1")
    assert records.get("t", "never") is None
