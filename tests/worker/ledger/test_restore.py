"""A restore while services and workers of the server run, and its entries in the audit log."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.worker.ledger.jobs import DAY, RECIPE
from tests.worker.ledger.test_backup import rewritten
from worker.errors import InvalidBackup
from worker.ledger import names
from worker.ledger.aliases import Aliases
from worker.ledger.audit import Actor, AuditLog, acting
from worker.ledger.backup import write_backup
from worker.ledger.encryption import PLAIN
from worker.ledger.idempotency import KEPT_MS, IdempotencyKey
from worker.ledger.records import Records
from worker.ledger.restore import BackupFile, Restore
from worker.ledger.tenants import Tenants, TenantSettings

FIRST, SECOND, THIRD = ("a" + str(number) * 40 for number in range(3))
OPERATOR = Actor("command line", "root")
IDEMPOTENCY = [IdempotencyKey(str(number) * 64, "f" * 64) for number in range(4)]


def opened(path: Path) -> BackupFile:
    backup = BackupFile(path, PLAIN)
    backup.check()
    return backup


def accept(records: Records, identity: str, idempotency: IdempotencyKey | None = None) -> None:
    records.accept("t", identity, RECIPE, DAY, (), queue="q", idempotency=idempotency)


def restore(client: "redis.Redis", backup: BackupFile, *, replace: bool = True, on_progress: Callable[[], object] = int) -> None:
    with acting(OPERATOR):
        Restore(client, client).restore(backup, replace=replace, on_progress=on_progress)


def keys_and_times(client: Any) -> tuple[set[bytes], set[bytes]]:
    """Return the idempotency keys, and those that have a time of their removal."""
    return set(client.scan_iter(names.idempotency("*", "*"))), set(client.zrange(names.IDEMPOTENCY, 0, -1))


@pytest.mark.parametrize("times_first", [False, True], ids=["present", "file-of-an-earlier-version"])
def test_expired_idempotency_keys_are_removed_after_a_restore_beside_a_reaper(
    redis_client: "redis.Redis", tmp_path: Path, times_first: bool
) -> None:
    """Run the reaper's step after each line of the restore.

    Earlier versions wrote the times of all keys anywhere in the file.
    """
    records = Records(redis_client)
    for number, key in enumerate(IDEMPOTENCY):
        accept(records, f"a{number:040x}", key)
    redis_client.zadd(names.IDEMPOTENCY, {names.idempotency("t", key.digest): 1 for key in IDEMPOTENCY})
    write_backup(path := tmp_path / "backup", redis_client, None)
    if times_first:
        path = rewritten(path, lambda lines: lines.sort(key=lambda line: line["key"] != names.IDEMPOTENCY))
    restore(redis_client, opened(path), on_progress=records.expired_keys.remove)
    keys, timed = keys_and_times(redis_client)
    assert keys <= timed and len(keys) == (4 if times_first else 0)
    latest: Any = redis_client.zrange(names.IDEMPOTENCY, 0, -1, withscores=True)
    assert all(score <= 1000 * redis_client.time()[0] + 1000 + KEPT_MS for _, score in latest)


def test_an_idempotency_key_whose_time_is_not_in_the_backup_gets_a_new_one(redis_client: "redis.Redis", tmp_path: Path) -> None:
    """A reaper may remove a key and its time after the backup has read only the key."""
    accept(Records(redis_client), FIRST, IDEMPOTENCY[0])
    write_backup(path := tmp_path / "backup", redis_client, None)

    def without_times(lines: list[dict[str, Any]]) -> None:
        lines[:] = [line for line in lines if line["key"] != names.IDEMPOTENCY]

    restore(redis_client, opened(rewritten(path, without_times)))
    key = names.idempotency("t", IDEMPOTENCY[0].digest)
    assert redis_client.exists(key) and redis_client.zscore(names.IDEMPOTENCY, key) is not None


def test_entries_of_the_audit_log_during_a_restore_are_kept_in_order(redis_client: "redis.Redis", tmp_path: Path) -> None:
    """Let a service write to the streams at each line, and another thread write during their merging."""
    records, aliases, log = Records(redis_client), Aliases(redis_client), AuditLog(redis_client)
    accept(records, FIRST)
    for number in range(5):
        aliases.point("t", f"before-{number}", FIRST)
    write_backup(tmp_path / "backup", redis_client, None)
    with acting(OPERATOR):
        Tenants(redis_client).change("t", {"MAX_JOBS": 5})  # after the backup, so only the server has its entry
    stop, written = threading.Event(), list[bytes]()

    def write_on() -> None:
        client = redis.Redis(connection_pool=redis_client.connection_pool)
        entry: Any = {"action": "key.revoked", "tenant": "t", "subject": "live", "actor": '{"kind": "key"}', "details": "{}"}
        while not stop.is_set():
            written.append(client.xadd(names.tenant_audit("t"), entry))  # type: ignore[arg-type]

    thread = threading.Thread(target=write_on)
    thread.start()
    try:
        restore(redis_client, opened(tmp_path / "backup"))
    finally:
        stop.set()
        thread.join()
    entries = list(log.since(0, "t"))
    assert [entry.subject for entry in entries if entry.subject.startswith("before")] == [f"before-{n}" for n in range(5)]
    assert {entry.identity for entry in entries} >= {identity.decode() for identity in written} and written
    assert [entry.action for entry in entries if entry.actor == OPERATOR] == ["limits.set"]
    assert not redis_client.exists(names.RESTORED_STREAM) and records.get("t", FIRST) is not None
    aliases.point("t", "after", FIRST)
    assert next(iter(log.page("t", 1)[0])).subject == "after"


def test_a_restore_is_recorded_and_keeps_the_audit_log_of_both(redis_client: "redis.Redis", tmp_path: Path) -> None:
    """Restore to a server with other entries, older and newer than those of the backup."""
    records, tenants, log = Records(redis_client), Tenants(redis_client), AuditLog(redis_client)
    entry: dict[Any, Any] = {
        "action": "limits.set",
        "tenant": "u",
        "subject": "u",
        "actor": '{"kind": "command line"}',
        "details": "{}",
    }
    with acting(OPERATOR):
        tenants.change("t", {"MAX_JOBS": 5})
    accept(records, FIRST)
    write_backup(path := tmp_path / "backup", redis_client, None)
    redis_client.flushall()
    redis_client.xadd(names.AUDIT, entry, id="5-0")
    with acting(OPERATOR):
        tenants.change("v", {"MAX_JOBS": 6})
    with pytest.raises(InvalidBackup, match="limits of tenants"):
        restore(redis_client, opened(path), replace=False)
    assert tenants.get("v") == TenantSettings({"MAX_JOBS": 6})
    for times in (1, 2):  # a repeated restore adds no entry a second time
        restore(redis_client, opened(path))
        entries = list(log.since(0))
        expected = [("limits.set", "u"), ("limits.set", "t"), ("limits.set", "v"), *[("backup.restored", "backup")] * times]
        assert [(entry.action, entry.subject) for entry in entries] == expected
    assert entries[-1].actor == OPERATOR and entries[-1].details["replaced"] is True and entries[-1].details["records"] == 1
    assert tenants.all() == {"t": TenantSettings({"MAX_JOBS": 5})}


def test_an_entry_is_kept_although_the_backup_has_later_ones(redis_client: "redis.Redis", tmp_path: Path) -> None:
    """Restore from a server whose clock was ahead.

    A service adds an entry just before the streams are exchanged.
    """
    entry: dict[Any, Any] = {"action": "limits.set", "tenant": "", "subject": "x", "actor": '{"kind": "process"}', "details": "{}"}
    redis_client.xadd(names.AUDIT, entry, id="900000000000000-7")
    write_backup(path := tmp_path / "backup", redis_client, None)
    redis_client.delete(names.AUDIT)
    restoring = Restore(redis_client, redis_client)
    swap = restoring._streams._swap

    def after_an_entry(**arguments: Any) -> object:
        redis_client.xadd(names.AUDIT, {**entry, "subject": "live"})
        return swap(**arguments)

    restoring._streams._swap = after_an_entry  # type: ignore[assignment]
    restoring.restore(opened(path), replace=True)
    assert [entry.subject for entry in AuditLog(redis_client).since(0)] == ["x", "live", "backup"]


def test_adapters_that_were_created_during_the_backup_are_the_newest(redis_client: "redis.Redis", tmp_path: Path) -> None:
    records = Records(redis_client)
    accept(records, FIRST)
    accept(records, SECOND)

    write_backup(path := tmp_path / "backup", redis_client, None)

    def add_one(lines: list[dict[str, Any]]) -> None:
        """Add a record that is not in the list of adapters, as if it had been created after the list was read."""
        record = next(line for line in lines if line["key"] == names.record("t", FIRST))
        lines.insert(lines.index(record), json.loads(json.dumps(record).replace(FIRST, THIRD)))

    path = rewritten(path, add_one)
    restore(redis_client, opened(path))
    page, cursor = records.page("t", 1, None)
    found = [record.adapter_id for record in page]
    while cursor is not None:
        page, cursor = records.page("t", 1, cursor)
        found += [record.adapter_id for record in page]
    assert found == [THIRD, SECOND, FIRST]
