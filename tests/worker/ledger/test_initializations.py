"""Initializations beside the records: stored with a job, found by digest, named, forgotten."""

import threading

import pytest
import redis

from tests.worker.ledger.jobs import DAY, RECIPE
from worker.ledger.claims import Claimant
from worker.ledger.initializations import StoredInitialization
from worker.ledger.records import Records

DIGEST = RECIPE.initialization_digest
STORED = StoredInitialization(b"bytes", "plain", "base", "tiny", "classes")


def test_no_record_is_written_without_its_initialization(redis_client: "redis.Redis") -> None:
    records, reads = Records(redis_client), []

    def content() -> StoredInitialization:
        reads.append(records.get("t", "a1"))
        return STORED

    assert records.accept("t", "a1", RECIPE, DAY, (), initialization=content) == (True, "queued")
    assert reads == [None] and records.initializations.get(DIGEST) == b"bytes"
    records.accept("t", "a2", RECIPE, DAY, (), initialization=content)
    assert len(reads) == 1  # stored already

    def unavailable() -> StoredInitialization:
        raise KeyError

    other = RECIPE.model_copy(update={"initialization_digest": "other"})
    with pytest.raises(KeyError):
        records.accept("t", "a3", other, DAY, (), initialization=unavailable)
    assert records.get("t", "a3") is None


def test_a_job_is_claimed_only_with_an_initialization_that_the_worker_has_or_can_load(redis_client: "redis.Redis") -> None:
    records = Records(redis_client)
    records.accept("t", "a1", RECIPE, DAY, (), queue="q")
    claimant = Claimant("w", queues={"q": ["another"]})
    for _ in range(5):  # leaving a job alone counts nothing
        assert records.claims.claim("t", "a1", claimant) is None
        assert records.claims.claim_in_turn("t", "a1", claimant) is None
    record = records.get("t", "a1")
    assert record is not None and record.status == "queued" and record.attempt == 0
    records.initializations.store(DIGEST, STORED)
    claimed = records.claims.claim_in_turn("t", "a1", claimant)
    assert claimed is not None and claimed.attempt == 1


def test_jobs_whose_initialization_is_not_stored_are_counted(redis_client: "redis.Redis") -> None:
    records = Records(redis_client)
    for number in range(3):
        records.accept("t", f"a{number}", RECIPE, DAY, ())
    records.accept("t", "b", RECIPE.model_copy(update={"initialization_digest": "other"}), DAY, (), initialization=lambda: STORED)
    assert records.initializations.lacking() == {DIGEST: 3}
    records.initializations.store(DIGEST, STORED)
    assert records.initializations.lacking() == {}


def test_an_initialization_is_forgotten_only_if_no_record_needs_it(redis_client: "redis.Redis") -> None:
    records = Records(redis_client)
    initializations = records.initializations
    for digest in (DIGEST, "unused"):
        initializations.store(digest, STORED)
    for number in range(3):
        records.accept("t", f"a{number}", RECIPE, DAY, ())
    redis_client.hdel("qs:t:adapter:a0", "summary")  # as written by a version without summaries
    assert initializations.needed() == {DIGEST: 3}
    assert initializations.forget(DIGEST) == 3 and initializations.read(DIGEST) == STORED
    assert initializations.forget("unused") == 0 and initializations.digests() == [DIGEST]
    for number in range(3):
        records.delete("t", f"a{number}")
    assert initializations.forget(DIGEST) == 0 and initializations.digests() == []


def test_an_interrupted_forget_loses_nothing(redis_client: "redis.Redis", monkeypatch: pytest.MonkeyPatch) -> None:
    initializations = Records(redis_client).initializations
    initializations.store("unused", STORED)
    calls: list[int] = []

    def needed() -> dict[str, int]:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return {}

    monkeypatch.setattr(initializations, "needed", needed)
    with pytest.raises(KeyboardInterrupt):
        initializations.forget("unused")
    assert initializations.read("unused") == STORED
    redis_client.rename("qs:initialization_by_digest:unused", "qs:initialization_set_aside:unused")  # as after a SIGKILL
    assert initializations.get("unused") == STORED.content
    assert initializations.digests() == ["unused"] and initializations.read("unused") == STORED


def test_a_needed_initialization_is_never_set_aside(redis_client: "redis.Redis", monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(redis_client)
    records.accept("t", "a1", RECIPE, DAY, (), initialization=lambda: STORED)
    monkeypatch.setattr(redis_client, "rename", None)
    assert records.initializations.forget(DIGEST) == 1


def test_jobs_accepted_while_an_initialization_is_forgotten_keep_it(redis_client: "redis.Redis") -> None:
    records, stop = Records(redis_client), threading.Event()

    def forget() -> None:
        while not stop.is_set():
            records.initializations.forget(DIGEST)

    thread = threading.Thread(target=forget)
    thread.start()
    try:
        for number in range(60):
            records.accept("t", f"a{number}", RECIPE, DAY, (), initialization=lambda: STORED)
            records.delete("t", f"a{number - 1}")
    finally:
        stop.set()
        thread.join()
    assert records.initializations.get(DIGEST) == b"bytes"


def test_names_point_at_digests_by_base_model(redis_client: "redis.Redis") -> None:
    initializations = Records(redis_client).initializations
    assert initializations.pointer("base", "default") is None
    initializations.point("base", "default", "d1")
    initializations.point("other", "a/b", "d2")
    assert initializations.pointer("base", "default") == "d1"
    assert initializations.pointers() == {("base", "default"): "d1", ("other", "a/b"): "d2"}
    initializations.point("base", "default", None)
    assert initializations.pointers() == {("other", "a/b"): "d2"}
