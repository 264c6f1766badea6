"""The audit log on a real Redis server: every change has its entry, and no other call has one."""

import json
import re
from typing import Any

import pytest
import redis

from tests.worker.ledger.jobs import DAY, RECIPE, claimed
from worker.errors import AdapterAliased
from worker.ledger import audit, scripts
from worker.ledger.aliases import Aliases
from worker.ledger.audit import ACTIONS, MOST_OF_DEPLOYMENT, MOST_OF_TENANT, Actor, AuditLog, Entry, acting
from worker.ledger.claims import Claimant
from worker.ledger.encryption import Cipher, EncryptionKey
from worker.ledger.initializations import StoredInitialization
from worker.ledger.records import Records
from worker.ledger.reencryption import Reencryption
from worker.ledger.tenants import Tenants, TenantSettings
from worker.logs import fields

KEY = Actor("key", "0123456789ab", "192.0.2.7")
OPERATOR = Actor("command line", "root")


@pytest.fixture
def log(redis_client: "redis.Redis") -> AuditLog:
    return AuditLog(redis_client)


def short(entries: list[Entry]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(entry.action, entry.subject, dict(entry.details)) for entry in entries]


def test_moves_of_an_alias_are_recorded_with_where_it_pointed(
    redis_client: "redis.Redis", records: Records, log: AuditLog, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "worker.ledger.audit")
    aliases = Aliases(redis_client)
    for identity in ("a1", "a2"):
        records.accept("t", identity, RECIPE, DAY, ())
    with acting(KEY), fields(request="r-1"):
        aliases.point("t", "live", "a1")
        aliases.point("t", "live", "a1")  # it does not move
        aliases.point("t", "live", "a2", expected="a9")  # refused
        aliases.point("t", "live", "unknown")
        aliases.point("t", "live", "a2")
        aliases.roll_back("t", "live")
        aliases.roll_back("t", "live")  # there is nothing left to roll back to
        aliases.remove("t", "live")
        aliases.remove("t", "live")
    entries = list(log.since(0))
    assert short(entries) == [
        ("alias.moved", "live", {"to": "a1"}),
        ("alias.moved", "live", {"from": "a1", "to": "a2"}),
        ("alias.rolled_back", "live", {"from": "a2", "to": "a1"}),
        ("alias.removed", "live", {"from": "a1"}),
    ]
    assert {(entry.tenant, entry.actor, entry.request) for entry in entries} == {("t", KEY, "r-1")}
    assert caplog.messages == ["changed"] * len(entries)
    now = redis_client.time()[0] * 1000
    assert all(now - 60_000 < entry.time <= now + 1_000 for entry in entries)


def test_deletions_are_recorded_but_the_end_of_an_expired_record_is_not(
    redis_client: "redis.Redis", records: Records, log: AuditLog
) -> None:
    aliases = Aliases(redis_client)
    for identity in ("a1", "a2", "a3"):
        records.accept("t", identity, RECIPE, DAY, ())
        aliases.point("t", f"alias-of-{identity}", identity)
    with acting(KEY):
        with pytest.raises(AdapterAliased):
            records.delete("t", "a1")
        assert records.delete("t", "unknown") is None and records.delete("t", "a2", only="dead") is None
        aliases.remove("t", "alias-of-a1")
        assert records.delete("t", "a1") is not None
    redis_client.zadd("qs:retire", {"t/a2": 1})
    assert [identity for _, identity, _ in records.retention.retire()] == ["a2"]
    claimed(records, "a3")
    redis_client.zadd("qs:dead", {"t/a3": 1})
    with acting(OPERATOR):
        assert records.delete("t", "a3", only="dead") is not None
    entries = [entry for entry in log.since(0) if entry.action != "alias.moved"]
    assert [(entry.action, entry.subject, entry.actor.kind) for entry in entries if entry.actor.kind != "command line"] == [
        ("alias.removed", "alias-of-a1", "key"),
        ("adapter.deleted", "a1", "key"),
        ("alias.removed", "alias-of-a2", "process"),
    ]
    by_operator = {(entry.action, entry.subject) for entry in entries if entry.actor == OPERATOR}
    assert by_operator == {("alias.removed", "alias-of-a3"), ("adapter.deleted", "a3")} and len(entries) == 5


def test_names_of_initializations_are_recorded_for_the_deployment(records: Records, log: AuditLog) -> None:
    store, digest = records.initializations, "ab" * 32
    store.store(digest, StoredInitialization(b"bytes", "plain", "base", "tiny", "classes"))
    store.point("base", "mine", digest)
    store.point("base", "mine", None)
    assert store.forget(digest) == 0 and store.forget(digest) == 0  # the second call finds nothing to forget
    assert short(list(log.since(0))) == [
        ("initialization.moved", "mine", {"base": "base", "to": digest}),
        ("initialization.reset", "mine", {"base": "base"}),
        ("initialization.forgotten", digest, {}),
    ]
    assert {entry.tenant for entry in log.since(0)} == {""} and list(log.since(0, "t")) == []


def test_a_tenant_cannot_push_out_what_others_did(
    redis_client: "redis.Redis", records: Records, log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MOST_OF_TENANT", 200)
    aliases = Aliases(redis_client)
    for tenant in ("quiet", "noisy"):
        for identity in ("a1", "a2"):
            records.accept(tenant, identity, RECIPE, DAY, ())
    with acting(OPERATOR), redis_client.pipeline() as pipe:
        audit.record_in(pipe, "noisy", "key.created", "0" * 12, {})
        pipe.execute()
    aliases.point("quiet", "live", "a1")
    for number in range(1_000):
        aliases.point("noisy", "live", f"a{1 + number % 2}")
    kept = redis_client.xlen("qs:noisy:audit")
    assert 200 <= kept < 400  # Redis removes whole blocks of entries
    assert [entry.subject for entry in log.since(0) if entry.action == "key.created"] == ["0" * 12]
    assert len(list(log.since(0, "quiet"))) == 1


def test_an_entry_by_an_operator_is_listed_once_and_shown_to_the_tenant(redis_client: "redis.Redis", log: AuditLog) -> None:
    with redis_client.pipeline() as pipe:
        with acting(OPERATOR):
            audit.record_in(pipe, "t", "limits.set", "t", {"MAX_JOBS": 1})
        with acting(KEY):
            audit.record_in(pipe, "t", "alias.removed", "live", {})
            audit.record_in(pipe, "u", "alias.removed", "other", {})
        pipe.execute()
    assert [entry.subject for entry in log.since(0)] == ["t", "live", "other"]
    assert [entry.subject for entry in log.since(0, "t")] == ["t", "live"]
    assert [entry.subject for entry in log.page("t", 10)[0]] == ["live", "t"]
    assert list(log.since(redis_client.time()[0] * 1000 + 60_000)) == []


def test_pages_have_every_entry_once_newest_first(redis_client: "redis.Redis", log: AuditLog) -> None:
    with redis_client.pipeline() as pipe:
        for number in range(25):
            audit.record_in(pipe, "t", "alias.removed" if number % 5 else "adapter.deleted", str(number), {})
        pipe.execute()

    def pages(limit: int, action: str | None = None) -> list[list[str]]:
        found, cursor, more = list[list[str]](), None, True
        while more:
            entries, cursor = log.page("t", limit, cursor, action, most=7)
            found.append([entry.subject for entry in entries])
            more = cursor is not None
        return found

    assert [subject for page in pages(10) for subject in page] == [str(number) for number in reversed(range(25))]
    assert max(map(len, pages(10))) == 10
    assert [subject for page in pages(2, "adapter.deleted") for subject in page] == ["20", "15", "10", "5", "0"]
    assert len(pages(25)) <= 2 and log.page("nobody", 5) == ([], None)


def test_the_bounds_are_the_documented_ones_and_every_action_of_a_script_is_known() -> None:
    assert (MOST_OF_DEPLOYMENT, MOST_OF_TENANT) == (100_000, 10_000)
    code = "".join(path.read_text() for path in scripts.FOLDER.glob("*.lua"))
    used = set(re.findall(r"audit\(ARGV\[\d\], '([a-z._]+)'", code))
    assert len(used) == 6 and used <= set(ACTIONS)
    assert json.loads(audit.script_context("t"))["streams"] == [["qs:t:audit", 10_000]]


def test_a_full_server_still_deletes_and_records_it(redis_client: "redis.Redis", records: Records, log: AuditLog) -> None:
    aliases = Aliases(redis_client)
    records.accept("t", "a1", RECIPE, DAY, ())
    aliases.point("t", "live", "a1")
    stored = StoredInitialization(b"bytes", "plain", "base", "tiny", "classes")
    records.initializations.store("unused", stored)
    records.initializations.point("base", "plain", "unused")
    tenants = Tenants(redis_client)
    for tenant in ("t", "u"):
        tenants.change(tenant, {"MAX_JOBS": 5, "MAX_ALIASES": 6})
    before = len(list(log.since(0)))
    redis_client.config_set("maxmemory", 1)
    with pytest.raises(redis.OutOfMemoryError):
        redis_client.set("more", "x")
    assert aliases.remove("t", "live") and records.delete("t", "a1") is not None
    records.initializations.point("base", "plain", None)
    assert records.initializations.forget("unused") == 0 and records.initializations.pointers() == {}
    assert tenants.reset("t") and tenants.reset("u", ["MAX_JOBS"]) and not tenants.reset("u", ["MAX_JOBS"])
    assert tenants.all() == {"u": TenantSettings({"MAX_ALIASES": 6})} and records.initializations.digests() == []
    actions = [entry.action for entry in log.since(0)][before:]
    assert sorted(actions) == sorted(
        ["alias.removed", "adapter.deleted", "initialization.reset", "initialization.forgotten", "limits.unset", "limits.unset"]
    )


def test_retries_of_dead_jobs_and_rewriting_all_values_are_recorded(
    redis_client: "redis.Redis", records: Records, log: AuditLog
) -> None:
    for identity in ("a1", "a2"):
        records.accept("t", identity, RECIPE, DAY, ())
        assert records.claims.claim("t", identity, Claimant("w", attempts=0)) is None
    with acting(OPERATOR):
        assert records.dead_jobs.revive("t", "a1") and not records.dead_jobs.revive("t", "a1")
        assert records.dead_jobs.revive("t", "a2", is_audited=False)
        cipher = Cipher([EncryptionKey(b"1" * 32)])
        Reencryption(redis_client, redis_client, cipher).apply()
    assert [(entry.action, entry.tenant, entry.subject, entry.actor) for entry in log.since(0)] == [
        ("job.retried", "t", "a1", OPERATOR),
        ("encryption.applied", "", cipher.sealing_key, OPERATOR),
    ]
