"""Everything that is derived from examples is encrypted in Redis and on disk, if there is a key."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner

from service.__main__ import main
from tests.conftest import RedisServer
from tests.worker.ledger.jobs import DAY
from worker.errors import EncryptionKeyMissing, InvalidKeyFile, LimitReached, SealBroken, WeightsCorrupt
from worker.ledger import names
from worker.ledger.claims import Claim, Claimant
from worker.ledger.encryption import PLAIN, Cipher, EncryptionKey, new_key, read_key_file, sealed_with
from worker.ledger.messages import JobRecipe, Outcome, queue_name
from worker.ledger.notes import Notes
from worker.ledger.records import Records
from worker.ledger.reencryption import Reencryption
from worker.ledger.weights_cache import WeightStore, weights_digest

FIRST, SECOND = EncryptionKey(b"1" * 32), EncryptionKey(b"2" * 32)
ID, OTHER = "a" + "0" * 40, "a" + "1" * 40
TEXTS = (
    "the secret example",
    "the other secret example",
    "secretlabel",
    "otherlabel",
    "the secret name",
    "secrettag",
    "the secret error",
)
RECIPE = JobRecipe(
    initialization="default",
    initialization_digest="d" * 64,
    support=((TEXTS[0], TEXTS[2]), (TEXTS[1], TEXTS[3])),
    steps=5,
    seed=0,
    precision="float32",
)
NOTES = Notes(TEXTS[4], (TEXTS[5],))


def claim(records: Records, identity: str = ID, queue: str = "q") -> Claim | None:
    return records.claims.claim("t", identity, Claimant("w", 10_000, 3, {queue: ("d" * 64,)}))


def fill(client: "redis.Redis", cipher: Cipher) -> None:
    """Write a ready adapter with weights, and a failed job."""
    records, store = Records(client, cipher=cipher), WeightStore(client, cipher)
    content = b"weights with " + TEXTS[2].encode()
    for identity, outcome in (
        (ID, Outcome(status="ready", digest=weights_digest(content), size=len(content))),
        (OTHER, Outcome(status="failed", error=TEXTS[6])),
    ):
        records.accept("t", identity, RECIPE, DAY, (), queue="q", notes=NOTES)
        claimed = claim(records, identity)
        assert claimed is not None and claimed.recipe == RECIPE
        if outcome.status == "ready":
            store.put("t", identity, claimed.fence, content, DAY)
        assert records.claims.commit(claimed, outcome) is not None
    records.id_key()


def check(client: "redis.Redis", cipher: Cipher) -> None:
    """Check that everything that `fill` wrote is readable."""
    records, store = Records(client, cipher=cipher), WeightStore(client, cipher)
    ready, failed = records.get("t", ID), records.get("t", OTHER)
    assert ready is not None and failed is not None and records.recipe("t", ID) == RECIPE
    assert (ready.summary, ready.name, ready.tags) == (RECIPE.summary, NOTES.name, NOTES.tags) and failed.error == TEXTS[6]
    assert store.get("t", ID, ready.fence, str(ready.digest)).startswith(b"weights with ")
    assert records.initializations.needed() == {"d" * 64: 2} and len(records.id_key()) == 32
    assert [record.adapter_id for record in records.page("t", 5, None)[0]] == [OTHER, ID]


def found_in(folder: Path) -> set[str]:
    """Return the texts of `fill` that are in the files of a folder."""
    content = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return {text for text in TEXTS if text.encode() in content}


def test_a_sealed_value_opens_only_under_its_name_with_its_key_and_unchanged() -> None:
    cipher, value = Cipher([FIRST]), b'{"a": 1}'
    sealed = cipher.seal("qs:t:adapter:a1/recipe", value)
    assert value not in sealed and sealed != cipher.seal("qs:t:adapter:a1/recipe", value)
    assert sealed_with(sealed) == FIRST.identity and len(sealed) == len(value) + 45
    assert cipher.open("qs:t:adapter:a1/recipe", sealed) == value == Cipher([SECOND, FIRST]).open("qs:t:adapter:a1/recipe", sealed)
    for other in ("qs:t:adapter:a1/summary", "qs:t:adapter:a2/recipe"):
        with pytest.raises(SealBroken):
            cipher.open(other, sealed)
    for position in range(17, len(sealed)):
        with pytest.raises(SealBroken):
            cipher.open("qs:t:adapter:a1/recipe", sealed[:position] + bytes([sealed[position] ^ 1]) + sealed[position + 1 :])
    for length in range(17, len(sealed)):
        with pytest.raises(SealBroken):
            cipher.open("qs:t:adapter:a1/recipe", sealed[:length])
    for without in (PLAIN, Cipher([SECOND])):
        with pytest.raises(EncryptionKeyMissing, match=f"^x is encrypted with key {FIRST.identity}, which is not in"):
            without.open("x", sealed)
        assert without.open("x", value) == value


def test_the_check_of_the_limits_counts_the_recipe_as_it_is_stored(redis_client: "redis.Redis") -> None:
    for number, cipher in enumerate((PLAIN, Cipher([FIRST]))):
        records, tenant = Records(redis_client, cipher=cipher), f"t{number}"
        records.accept(tenant, ID, RECIPE, DAY, ())
        most = int(redis_client.hget(names.usage(tenant), "example_bytes") or 0)
        assert most == len(RECIPE.model_dump_json(exclude_defaults=True)) + cipher.added_bytes
        records.check_room("u", OTHER, RECIPE, size=1, limits={"MAX_EXAMPLE_BYTES": most})
        with pytest.raises(LimitReached):
            records.check_room("u", OTHER, RECIPE, size=1, limits={"MAX_EXAMPLE_BYTES": most - 1})


def test_a_key_file_has_the_sealing_key_first(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# made today\n\n{FIRST.line}\n{SECOND.line}\n")
    cipher = read_key_file(path)
    assert (cipher.sealing_key, cipher.key_ids) == (FIRST.identity, (FIRST.identity, SECOND.identity))
    path.write_text(f"plain\n{SECOND.line}\n")
    cipher = read_key_file(path)
    assert (cipher.sealing_key, cipher.key_ids, cipher.seal("x", b"v")) == ("", (SECOND.identity,), b"v")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected at least one key, got none"),
        ("plain\n", "expected at least one key, got none"),
        ("secret-line\n", "line 1 of .*: expected a key of 43 characters"),
        (f"{FIRST.line}\n{FIRST.line[:-1]}\n", "line 2 of .*: expected a key of 43 characters"),
        (f"{FIRST.line}\n{FIRST.line}\n", "expected different keys, got one twice"),
        (f"{FIRST.line}\nplain\n", "line 2 of .*: expected a key of 43 characters"),
        ("é", "expected a readable file of keys, got UnicodeDecodeError"),
        ("#" * 10_001, "expected a file of at most 10000 bytes"),
    ],
)
def test_what_is_wrong_with_a_key_file_is_named_and_not_quoted(tmp_path: Path, content: str, message: str) -> None:
    (path := tmp_path / "keys").write_text(content)
    with pytest.raises(InvalidKeyFile, match=message) as error:
        read_key_file(path)
    assert "secret-line" not in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(InvalidKeyFile, match="FileNotFoundError"):
        read_key_file(tmp_path / "nothing")


def test_new_key_writes_a_file_for_its_owner_alone_and_overwrites_none(tmp_path: Path) -> None:
    path = tmp_path / "keys"

    def run(*arguments: str) -> str:
        return CliRunner().invoke(main, ["encryption", "new-key", str(path), *arguments]).output

    assert run("--append").startswith("error: FILE: expected a readable file of keys, got FileNotFoundError")
    assert run() == f"key {read_key_file(path).sealing_key} is in {path}\n" and stat.S_IMODE(path.stat().st_mode) == 0o600
    before = read_key_file(path).key_ids
    assert run() == f"error: FILE: {path} exists; --append adds a key to it\n" and read_key_file(path).key_ids == before
    run("--append")
    assert read_key_file(path).key_ids[:1] == before and len(read_key_file(path).key_ids) == 2


def test_without_a_key_the_texts_are_on_disk_and_with_one_they_are_not(
    redis_server: RedisServer, redis_client: "redis.Redis"
) -> None:
    redis_client.config_set("rdbcompression", "no")
    fill(redis_client, PLAIN)
    check(redis_client, PLAIN)
    assert found_in(redis_server.folder) == set(TEXTS)  # so this test would find them
    redis_client.flushall()
    redis_client.config_set("appendonly", "no")
    redis_client.config_set("appendonly", "yes")  # a new file
    _wait_for_rewrite(redis_client)
    assert not found_in(redis_server.folder)
    fill(redis_client, Cipher([FIRST]))
    check(redis_client, Cipher([FIRST]))
    assert not found_in(redis_server.folder)


def _wait_for_rewrite(client: "redis.Redis") -> None:
    import time

    while (state := client.info("persistence"))["aof_rewrite_in_progress"] or state.get("aof_rewrite_scheduled"):
        time.sleep(0.05)


@pytest.mark.parametrize("before", [PLAIN, Cipher([SECOND])], ids=["plain", "another-key"])
def test_apply_rewrites_everything_and_nothing_earlier_stays_on_disk(
    redis_server: RedisServer, redis_client: "redis.Redis", before: Cipher
) -> None:
    redis_client.config_set("rdbcompression", "no")
    fill(redis_client, before)
    redis_client.hdel(names.record("t", OTHER), "summary", "initialization_digest")  # as in records of earlier versions
    ttl = min(redis_client.ttl(key) for key in redis_client.scan_iter("qs:*:weights:*"))
    cipher = Cipher([FIRST, SECOND])
    reencryption, records = Reencryption(redis_client, redis_client, cipher), Records(redis_client, cipher=cipher)
    done = reencryption.apply()
    assert (done.records, done.weights, done.skipped) == (2, 1, 0) and reencryption.erase_earlier_forms(records, 30)
    check(redis_client, Cipher([FIRST]))
    assert not found_in(redis_server.folder)
    assert all(redis_client.ttl(key) >= ttl - 60 > 0 for key in redis_client.scan_iter("qs:*:weights:*"))
    again = Reencryption(redis_client, redis_client, cipher).apply()
    assert (again.records, again.weights, again.skipped) == (0, 0, 3)
    back = Reencryption(redis_client, redis_client, Cipher([FIRST], seals=False)).apply()
    assert (back.records, back.weights) == (2, 1)
    check(redis_client, PLAIN)


def test_apply_does_not_undo_a_change_that_comes_in_between(redis_client: "redis.Redis") -> None:
    fill(redis_client, PLAIN)
    cipher = Cipher([FIRST])
    reencryption, records = Reencryption(redis_client, redis_client, cipher), Records(redis_client, cipher=cipher)
    reseal, calls = reencryption._reseal, list[object]()

    def renamed_meanwhile(**arguments: object) -> object:
        if not calls:
            Records(redis_client).annotate("t", ID, Notes("a later name"))
            Records(redis_client).annotate("t", OTHER, Notes("a later name"))
        calls.append(arguments)
        return reseal(**arguments)  # type: ignore[arg-type]

    reencryption._reseal = renamed_meanwhile  # type: ignore[assignment]
    reencryption.apply()
    assert len(calls) == 3
    renamed = [record.name for record in records.page("t", 5, None)[0]]
    assert renamed == ["a later name", "a later name"]
    stored: Any = redis_client.hget(names.record("t", ID), "name")
    assert sealed_with(stored) == FIRST.identity


@pytest.mark.parametrize("applied", [False, True], ids=["accepted", "applied"])
def test_a_worker_without_the_key_leaves_a_job_alone(redis_client: "redis.Redis", applied: bool) -> None:
    with_key = Records(redis_client, cipher=Cipher([FIRST]))
    writer = Records(redis_client) if applied else with_key
    writer.accept("t", ID, RECIPE, DAY, (), queue="q")
    if applied:
        Reencryption(redis_client, redis_client, Cipher([FIRST])).apply()
    for without in (Records(redis_client), Records(redis_client, cipher=Cipher([SECOND]))):
        assert claim(without) is None
        with pytest.raises(EncryptionKeyMissing):
            without.get("t", ID)
        with pytest.raises(EncryptionKeyMissing):
            without.recipe("t", ID)
        assert without.initializations.needed() == {"d" * 64: 1} == without.initializations.lacking()
    state = with_key.job_state("t", ID)
    assert state is not None and (state.status, state.attempt) == ("queued", 0) and "attempts" not in with_key.counts.read()
    claimed = claim(Records(redis_client, cipher=Cipher([SECOND, FIRST])))
    assert claimed is not None and claimed.recipe == RECIPE and claimed.attempt == 1


def test_jobs_of_a_key_have_a_queue_that_earlier_versions_do_not_know() -> None:
    assert queue_name("b" * 64, "float32", "k", 2, FIRST.identity) == queue_name("b" * 64, "float32", "k", 2) + f".{FIRST.identity}"


def test_weights_that_were_moved_or_changed_are_discarded_and_those_of_another_key_are_not(redis_client: "redis.Redis") -> None:
    store, digest = WeightStore(redis_client, Cipher([FIRST])), weights_digest(b"weights")
    store.put("t", ID, 7, b"weights", DAY)
    redis_client.rename(names.weights("t", ID, 7), names.weights("t", OTHER, 7))
    with pytest.raises(WeightsCorrupt):
        store.get("t", OTHER, 7, digest)
    assert not store.has("t", OTHER, 7)
    store.put("t", ID, 7, b"weights", DAY)
    with pytest.raises(EncryptionKeyMissing):
        WeightStore(redis_client, Cipher([SECOND])).get("t", ID, 7, digest)
    assert store.get("t", ID, 7, digest) == b"weights"


def test_a_value_that_was_moved_to_another_record_is_not_read(redis_client: "redis.Redis") -> None:
    cipher = Cipher([FIRST])
    fill(redis_client, cipher)
    redis_client.hset(names.record("t", ID), "name", redis_client.hget(names.record("t", OTHER), "name") or b"")
    with pytest.raises(SealBroken, match=f"^qs:t:adapter:{ID}/name was changed, or moved here from elsewhere"):
        Records(redis_client, cipher=cipher).get("t", ID)


def test_apply_is_refused_while_a_live_worker_lacks_the_key(
    redis_server: RedisServer, redis_client: "redis.Redis", tmp_path: Path
) -> None:
    fill(redis_client, PLAIN)
    key = new_key()
    (path := tmp_path / "keys").write_text(key.line)
    environment = {"REDIS_URL": redis_server.url, "ENCRYPTION_KEY_FILE": str(path)}

    def apply() -> str:
        return CliRunner().invoke(main, ["encryption", "apply"], env=environment).output

    workers = Records(redis_client).workers
    workers.announce("old", {"queue": "q"}, 60)
    workers.announce("new", {"queue": "q", "keys": [key.identity]}, 60)
    assert apply() == f"error: 1 live workers do not have key {key.identity}; give it to every service and worker first\n"
    workers.remove("old")
    assert apply().splitlines() == [
        f"2 records and the weights of 1 adapters are now encrypted with key {key.identity}; 0 already were",
        "the append-only file was rewritten without the earlier forms",
    ]
    check(redis_client, Cipher([key]))
    assert json.loads(Records(redis_client, cipher=Cipher([key])).recipe("t", ID).model_dump_json())["seed"] == 0  # type: ignore[union-attr]
