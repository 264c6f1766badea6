"""A backup restores everything durable to another server, and a file that was changed is refused."""

import base64
import hashlib
import json
import re
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.conftest import RedisServer
from tests.worker.ledger.jobs import DAY, RECIPE
from worker.errors import EncryptionKeyMissing, InvalidBackup
from worker.ledger import names
from worker.ledger.aliases import Aliases
from worker.ledger.api_keys import Keys, parts, proves
from worker.ledger.backup import CONTENTS_NAME, MANIFEST_NAME, write_backup
from worker.ledger.claims import Claimant
from worker.ledger.contents import CONTENTS, contents_of
from worker.ledger.encryption import PLAIN, Cipher, EncryptionKey
from worker.ledger.initializations import StoredInitialization
from worker.ledger.messages import Outcome
from worker.ledger.notes import Notes
from worker.ledger.records import Records
from worker.ledger.restore import BackupFile, Restore
from worker.ledger.usage import Usage, Used
from worker.ledger.weights_cache import WeightStore, weights_digest

READY, PINNED, QUEUED, RUNNING, FAILED, DEAD, AGAIN = ("a" + str(number) * 40 for number in range(7))
KEY = Cipher([EncryptionKey(b"1" * 32)])
STORED = StoredInitialization(b"\x00\xff content", "default", "e" * 64, "model", "classes")


@pytest.fixture
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator["redis.Redis"]:
    """Run another, empty server."""
    server = RedisServer(tmp_path_factory.mktemp("other"))
    server.start()
    client = redis.Redis.from_url(server.url)
    yield client
    client.close()
    server.stop()


def fill(client: "redis.Redis", cipher: Cipher = PLAIN) -> str:
    """Write adapters in every state, aliases, keys and usage. Return the whole API key."""
    records, store = Records(client, cipher=cipher), WeightStore(client, cipher)
    records.initializations.store("d" * 64, STORED)
    records.initializations.point("e" * 64, "default", "d" * 64)
    for identity in (READY, PINNED, RUNNING, FAILED, DEAD, AGAIN, QUEUED):
        records.accept("t", identity, RECIPE, DAY, (1,), queue="q", notes=Notes("näme", ("a tag",)), size=100)
    for identity in (READY, PINNED, AGAIN, FAILED, RUNNING, DEAD):
        attempts = 0 if identity == DEAD else 3
        claim = records.claims.claim("t", identity, Claimant("w", 60_000, attempts, {"q": ()}))
        if claim is None:
            assert identity == DEAD
        elif identity == FAILED:
            records.claims.commit(claim, Outcome(status="failed", error="because"))
        elif identity != RUNNING:
            content = f"weights of {identity}".encode() + b"\xff"
            store.put("t", identity, claim.fence, content, DAY)
            records.claims.commit(claim, Outcome(status="ready", digest=weights_digest(content), size=len(content)))
    records.pin("t", PINNED, True)
    again = records.get("t", AGAIN)
    assert again is not None and records.requeue(again, "evicted")
    aliases = Aliases(client)
    for identity in (READY, PINNED):
        aliases.point("t", "prod", identity)
    aliases.point("u", "prod", READY)  # tenant u has no such adapter, so this does nothing
    Usage(client).add_predictions("t", 7)
    client.set(f"qs:t:idempotency:{'f' * 64}", f"{'e' * 64} {READY}", ex=60)
    records.id_key()
    return Keys(client).create("t", "laptop", ["predict"])[1]


def states(records: Records) -> dict[str, tuple[Any, ...]]:
    page, _ = records.page("t", 50, None)
    return {r.adapter_id: (r.status, r.summary, r.name, r.tags, r.pinned, r.digest, r.truncated, r.error) for r in page}


@pytest.mark.parametrize("cipher", [PLAIN, KEY], ids=["plain", "encrypted"])
@pytest.mark.parametrize("with_weights", [False, True])
def test_a_restored_server_has_everything_and_runs_unfinished_jobs_again(
    redis_client: "redis.Redis", other: "redis.Redis", tmp_path: Path, cipher: Cipher, with_weights: bool
) -> None:
    whole_key = fill(redis_client, cipher)
    records, restored = Records(redis_client, cipher=cipher), Records(other, cipher=cipher)
    before, used, path = states(records), Usage(redis_client).of("t"), tmp_path / "backup"
    redis_client.set(names.FENCE, 10**14)  # as if the clock had been ahead
    manifest = write_backup(path, redis_client, redis_client if with_weights else None)
    assert (manifest.records, manifest.weights, manifest.left_out) == (7, 2 * with_weights, 0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and list(tmp_path.iterdir()) == [path]
    if cipher is KEY:
        with zipfile.ZipFile(path) as archive:
            content = archive.read(CONTENTS_NAME)
        assert b"a tag" not in content and b'"x"' not in content and manifest.key_ids == list(KEY.key_ids)
    backup = BackupFile(path, cipher)
    backup.check()
    done = Restore(other, other).restore(backup, replace=False)
    assert (done.records, done.weights, done.requeued, done.aliases_dropped) == (7, 2 * with_weights, 3, 0)
    after = states(restored)
    assert list(after) == list(before) and after == {**before, RUNNING: ("queued", *before[RUNNING][1:])}
    assert other.smembers("qs:t:unfinished") == {value.encode() for value in (QUEUED, RUNNING, AGAIN)}
    assert sorted(restored.waiting.due()) == [("t", identity, "q") for identity in (QUEUED, RUNNING, AGAIN)]
    assert Usage(other).of("t") == Used(**{**vars(used), "requests_this_minute": 0})
    assert {record.adapter_id for record in restored.dead_jobs.latest()} == {DEAD}
    assert restored.recipe("t", READY) == RECIPE and restored.id_key() == records.id_key()
    assert Aliases(other).of("t", PINNED) == ["prod"] and [alias.alias for alias in Aliases(other).page("t", 5, None)[0]] == [
        "prod"
    ]
    assert Aliases(other).roll_back("t", "prod").adapter_id == READY
    identity, secret = parts(whole_key) or ("", "")
    assert proves(Keys(other).find(identity)[0], secret)
    assert restored.initializations.read("d" * 64) == STORED and restored.initializations.pointers() == {
        ("e" * 64, "default"): "d" * 64
    }
    assert 0 < other.ttl(f"qs:t:idempotency:{'f' * 64}") <= 60
    assert restored.counts.read() == {**records.counts.read(), "revived": 0, "now_queued": 3, "now_running": 0}
    store = WeightStore(other, cipher)
    for identity in (READY, PINNED):
        record = restored.get("t", identity)
        assert record is not None and store.has("t", identity, record.fence) is with_weights
        assert not with_weights or store.get("t", identity, record.fence, str(record.digest)).endswith(b"\xff")
    claim = restored.claims.claim("t", RUNNING, Claimant("w", 60_000, 3, {"q": ()}))
    assert claim is not None and claim.fence > 10**14 and claim.attempt == 1 and claim.recipe == RECIPE
    new, _ = restored.accept("t", "a" + "9" * 40, RECIPE, DAY, ())
    assert new and next(iter(states(restored))) == "a" + "9" * 40


def test_a_server_with_records_is_only_replaced_on_request(
    redis_client: "redis.Redis", other: "redis.Redis", redis_server: RedisServer, tmp_path: Path
) -> None:
    fill(redis_client)
    write_backup(tmp_path / "backup", redis_client, None)
    late = Records(other)
    late.accept("t", READY, RECIPE, DAY, (), queue="q")
    late.accept("v", FAILED, RECIPE, DAY, (), queue="q")
    claim = late.claims.claim("t", READY, Claimant("w", 60_000, 3, {"q": ()}))
    assert claim is not None
    WeightStore(other).put("t", READY, claim.fence, b"weights", DAY)
    backup = BackupFile(tmp_path / "backup", PLAIN)
    with pytest.raises(InvalidBackup, match="--replace deletes them"):
        Restore(other, other).restore(backup, replace=False)
    assert late.get("v", FAILED) is not None
    for _ in range(2):  # so that it can be repeated after an interruption
        Restore(other, other).restore(backup, replace=True)
        assert late.get("v", FAILED) is None and states(late) == {**states(Records(redis_client)), RUNNING: states(late)[RUNNING]}
        assert Usage(other).of("t").bytes == Usage(redis_client).of("t").bytes
        assert Usage(other).of("t").example_bytes == Usage(redis_client).of("t").example_bytes
    assert late.claims.commit(claim, Outcome(status="ready", digest="d", size=1)) is None  # a worker of before
    assert not list(other.scan_iter("qs:*:weights:*")) and other.exists(names.ERASE)


def test_a_backup_while_adapters_come_and_go_restores_to_a_state_without_loose_ends(
    redis_client: "redis.Redis", other: "redis.Redis", tmp_path: Path
) -> None:
    fill(redis_client)
    records, calls = Records(redis_client), []

    def meanwhile() -> None:
        """Delete an adapter that an alias points at, and add one, at a line of each pass."""
        calls.append(1)
        number = len(calls)
        if number == 14:
            Aliases(redis_client).remove("t", "prod")
            records.delete("t", PINNED)
        records.accept("t", f"a{number:040x}", RECIPE, DAY, (), queue="q")

    write_backup(tmp_path / "backup", redis_client, None, meanwhile)
    backup = BackupFile(tmp_path / "backup", PLAIN)
    backup.check()
    Restore(other, other).restore(backup, replace=False)
    restored = Records(other)
    page = [record for (record,) in zip(restored.page("t", 200, None)[0], strict=True)]
    assert {f"qs:t:adapter:{record.adapter_id}".encode() for record in page} == set(other.scan_iter("qs:t:adapter:*"))
    unfinished = {record.adapter_id for record in page if record.status == "queued"}
    assert other.smembers("qs:t:unfinished") == {identity.encode() for identity in unfinished}
    alias = Aliases(other).get("t", "prod")
    assert alias is None or restored.get("t", alias.adapter_id) is not None


def rewritten(path: Path, change: Callable[[list[dict[str, Any]]], object], **manifest_changes: Any) -> Path:
    """Return a copy of a backup with changed lines, and a manifest that fits them."""
    with zipfile.ZipFile(path) as archive:
        lines = [json.loads(line) for line in archive.read(CONTENTS_NAME).splitlines()]
        manifest = json.loads(archive.read(MANIFEST_NAME))
    change(lines)
    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    manifest |= {"lines": len(lines), "sha256": hashlib.sha256(content).hexdigest(), **manifest_changes}
    copy = path.with_name("changed")
    with zipfile.ZipFile(copy, "w") as archive:
        archive.writestr(CONTENTS_NAME, content)
        archive.writestr(MANIFEST_NAME, json.dumps(manifest))
    return copy


def record_of(lines: list[dict[str, Any]]) -> dict[str, Any]:
    return next(line for line in lines if ":adapter:" in line["key"])


def set_field(name: str, value: Any) -> Callable[[list[dict[str, Any]]], object]:
    return lambda lines: record_of(lines)["value"].update({name: value})


def add(**line: Any) -> Callable[[list[dict[str, Any]]], object]:
    return lambda lines: lines.append(line)


WRONG: list[tuple[Callable[[list[dict[str, Any]]], object], str]] = [
    (set_field("recipe", "not JSON"), "expected a record, got one that cannot be read"),
    (set_field("recipe", {"base64": base64.b64encode(b"\x80\x04pickle").decode()}), "expected a record, got one that"),
    (set_field("status", "paused"), "expected a record"),
    (set_field("expires_at", "1e400"), "expires_at: expected a whole number"),
    (set_field("fence", "9" * 400), "fence: expected a whole number"),
    (set_field("bytes", "-5"), "bytes: expected a whole number"),
    *[(set_field("cost", cost), "cost: expected a whole number") for cost in ("inf", "abc", "-1e9")],
    *[
        (set_field(name, "soon"), f"{name}: expected a whole number")
        for name in ("queued_at", "announced_at", "lease_until", "heard_at", "lost_at")
    ],
    (set_field("initialization_digest", "e" * 64), "initialization_digest: expected the one of the recipe"),
    *[
        (add(key="qs:tenants", type="hash", value={"t": settings}), "expected a key, a type and a value")
        for settings in ('{"share": 0}', '{"share": "2"}', '{"share": 1e9}', '{"limits": {"MAX_JOBS": -1}}', "[]", "x")
    ],
    (add(key="qs:audit", type="stream", value=[["18446744073709551615-1", {"action": "x"}]]), "expected a key, a type and a value"),
    (
        set_field("summary", json.dumps({**RECIPE.summary.model_dump(), "initialization_digest": "e" * 64})),
        "does not fit the recipe",
    ),
    (lambda lines: record_of(lines)["value"].pop("recipe"), "expected a record"),
    (lambda lines: record_of(lines).update(key="qs:t:adapter:../../x"), "key: expected one that backups contain"),
    (lambda lines: record_of(lines).update(key=f"qs:celery:adapter:{READY}"), "key: expected one that backups contain"),
    (lambda lines: record_of(lines).update(type="string"), "type: expected hash, got 'string'"),
    (add(key="other:key", type="string", value="x"), "key: expected one that backups contain, got 'other:key'"),
    (add(key="qs:pending", type="zset", value={"t/x": 1}), "key: expected one that backups contain, got 'qs:pending'"),
    (add(key="qs:keys", type="hash", value={"a": "not a key"}), "expected a key, a type and a value"),
    (add(key="qs:counts", type="hash", value={"a": "many"}), "expected a key, a type and a value"),
    (add(key="qs:t:adapters", type="zset", value={READY: "nan"}), "expected a key, a type and a value"),
    (add(key="qs:t:alias-targets", type="hash", value={"prod": "x"}), "expected a key, a type and a value"),
    (add(key="qs:fence", type="string", value="9" * 99), "expected a key, a type and a value"),
    (add(key="qs:id-key", type="string", value=["x"]), "expected a key, a type and a value"),
    (add(key="qs:id-key", type="string", value={"base64": "@@"}), "expected a key, a type and a value"),
    (add(key="qs:id-key", type="string", value="x", expires_at="soon"), "expected a key, a type and a value"),
    (add(key=["qs:id-key"], type="string", value="x"), "expected a key, a type and a value"),
    (add(nothing=1), "expected a key, a type and a value"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_what_is_wrong_with_a_backup_is_named_in_one_line(
    redis_client: "redis.Redis", tmp_path: Path, change: Callable[[list[dict[str, Any]]], object], message: str
) -> None:
    fill(redis_client)
    write_backup(tmp_path / "backup", redis_client, None)
    with pytest.raises(InvalidBackup, match=re.escape(message)) as error:
        BackupFile(rewritten(tmp_path / "backup", change), PLAIN).check()
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_a_file_that_is_no_backup_or_was_cut_is_refused(redis_client: "redis.Redis", tmp_path: Path) -> None:
    fill(redis_client, KEY)
    path = tmp_path / "backup"
    write_backup(path, redis_client, None)
    BackupFile(rewritten(path, lambda lines: None), KEY).check()
    for changes, message in (
        ({"format": 2}, "format: expected 1, got '2'"),
        ({"key_ids": 3}, "key_ids: expected a list"),
        ({"sha256": "0" * 64}, "was changed or cut"),
        ({"lines": 3}, "was changed or cut"),
    ):
        with pytest.raises(InvalidBackup, match=message):
            BackupFile(rewritten(path, lambda lines: None, **changes), KEY).check()
    with pytest.raises(EncryptionKeyMissing, match=f"the backup is encrypted with key {KEY.sealing_key}"):
        BackupFile(path, PLAIN)
    (tmp_path / "text").write_text("no archive")
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-30])
    with zipfile.ZipFile(tmp_path / "entries", "w") as archive:
        archive.writestr("../evil", "x")
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 3] ^= 0xFF
    (tmp_path / "damaged").write_bytes(damaged)
    for name in ("text", "cut", "entries", "damaged", "nothing"):
        with pytest.raises(InvalidBackup, match=r"^expected a|^line|^the contents"):
            BackupFile(tmp_path / name, KEY).check()
    with pytest.raises(InvalidBackup, match="expected the name of a new file"):
        write_backup(path, redis_client, None)


def test_a_line_that_claims_to_be_vast_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.ledger.restore._LINE_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(CONTENTS_NAME, b" " * 10**7)
        archive.writestr(MANIFEST_NAME, json.dumps({"format": 1, "lines": 1, "sha256": "", "key_ids": []}))
    with pytest.raises(InvalidBackup, match="line 1: expected at most 1000 bytes, got more"):
        BackupFile(tmp_path / "bomb", PLAIN).check()


def test_a_failed_backup_leaves_no_file(redis_server: RedisServer, redis_client: "redis.Redis", tmp_path: Path) -> None:
    fill(redis_client)

    def fail() -> None:
        raise redis.ConnectionError("gone")

    with pytest.raises(redis.ConnectionError):
        write_backup(tmp_path / "backup", redis_client, None, fail)
    assert list(tmp_path.iterdir()) == []


def test_every_key_of_the_ledger_has_a_place_in_backups() -> None:
    page = Path(str(names.__file__)).read_text().split('"""')[1]
    listed = re.findall(r"^\| `((?:qs:|…:)[^`]*)` \| ([a-z ]+) ", page, re.M)
    full = {pattern.replace("…:", "qs:TENANT:", 1) if pattern.startswith("…") else pattern for pattern, _ in listed}
    assert len(full) > 25 and full <= {contents.pattern for contents in CONTENTS}
    for contents in CONTENTS:
        example = (
            contents.pattern.replace("TENANT", "t-1").replace("DIGEST", "d" * 64).replace("FENCE", "12").replace("MINUTE", "5")
        )
        example = (
            example.replace("PASS_KEY", "d/float32/None/3/k").replace("QUEUE", "q.1").replace("ALIAS", "prod").replace("ID", READY)
        )
        assert contents_of(example) is contents, example
