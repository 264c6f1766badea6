"""Jobs still run after the encryption key was changed, and after encryption was switched off."""

from typing import Any

import pytest
import redis

from tests.worker.ledger.jobs import DAY, RECIPE
from worker.ledger import names
from worker.ledger.claims import Claim, Claimant
from worker.ledger.encryption import PLAIN, Cipher, EncryptionKey
from worker.ledger.messages import Outcome, earlier_queue_names, queue_name, with_key
from worker.ledger.records import Records
from worker.ledger.reencryption import Reencryption

FIRST, SECOND = EncryptionKey(b"1" * 32), EncryptionKey(b"2" * 32)
READY, QUEUED, RUNNING, DEAD = ("a" + str(number) * 40 for number in range(4))
CHANGES = pytest.mark.parametrize(
    ("both", "after"),
    [(Cipher([SECOND, FIRST]), Cipher([SECOND])), (Cipher([FIRST], seals=False), PLAIN)],
    ids=["another-key", "switched-off"],
)


def queue(key_id: str) -> str:
    return queue_name("b" * 64, "float32", RECIPE.kind, RECIPE.summary.job_format, key_id)


def claimant(cipher: Cipher, attempts: int = 3) -> Claimant:
    """Return a worker that has the keys of `cipher`.

    Its queues are those that `Resident.readable_queues` gives it.
    """
    return Claimant("w", 60_000, attempts, {queue(key_id): () for key_id in (cipher.sealing_key, "", *cipher.key_ids)})


def fill(client: "redis.Redis", cipher: Cipher) -> tuple[Records, Claim]:
    """Write a job in each state. Return the records and the claim of the running job."""
    records, worker = Records(client, cipher=cipher), claimant(cipher)
    for identity in (READY, QUEUED, RUNNING, DEAD):
        records.accept("t", identity, RECIPE, DAY, (), queue=queue(cipher.sealing_key))
    ready, running = (records.claims.claim("t", identity, worker) for identity in (READY, RUNNING))
    assert ready is not None and running is not None
    assert records.claims.commit(ready, Outcome(status="ready", digest="f", size=1))
    assert records.claims.claim("t", DEAD, claimant(cipher, attempts=0)) is None
    return records, running


@CHANGES
def test_jobs_in_every_state_run_after_the_earlier_key_was_removed(
    redis_client: "redis.Redis", both: Cipher, after: Cipher
) -> None:
    earlier, running = fill(redis_client, Cipher([FIRST]))
    assert Reencryption(redis_client, redis_client, both).apply().records == 4
    assert earlier.claims.hand_back(running, "its worker was stopped", delay_ms=0, is_attempt=False)
    records = Records(redis_client, cipher=after)
    evicted = records.get("t", READY)
    assert evicted is not None and evicted.queue == queue(after.sealing_key)
    assert records.requeue(evicted, "evicted") and records.dead_jobs.revive("t", DEAD)
    redis_client.zadd(names.PENDING, {names.member("t", QUEUED): 0})
    assert {identity for _, identity, its_queue in records.waiting.due() if its_queue == evicted.queue} >= {QUEUED, RUNNING, DEAD}
    claims = [records.claims.claim_in_turn("t", READY, claimant(after)) for _ in range(4)]
    assert {claim.adapter_id for claim in claims if claim is not None} == {READY, QUEUED, RUNNING, DEAD}
    assert not list(redis_client.scan_iter("qs:waiting_in:*")) and evicted.queue in records.waiting.queues()


def test_a_waiting_job_keeps_its_place_and_its_wake_up_is_sent_to_the_new_queue(redis_client: "redis.Redis") -> None:
    records, cipher = Records(redis_client, cipher=Cipher([FIRST])), Cipher([SECOND, FIRST])
    records.accept("t", QUEUED, RECIPE, DAY, (), queue=queue(FIRST.identity))
    waits: Any = redis_client.zrange(f"qs:waiting_in:t:{queue(FIRST.identity)}", 0, -1, withscores=True)
    Reencryption(redis_client, redis_client, cipher).apply()
    assert redis_client.zrange(f"qs:waiting_in:t:{queue(SECOND.identity)}", 0, -1, withscores=True) == waits
    later = Records(redis_client, cipher=cipher)
    later.accept("t", READY, RECIPE, DAY, (), queue=queue(SECOND.identity))
    redis_client.zadd(names.PENDING, {names.member("t", QUEUED): 0})
    oldest = {queue(SECOND.identity): ("t", READY)}  # the only wake-up in the new queue is the one of the later job
    assert later.waiting.due(oldest=oldest) == [("t", QUEUED, queue(SECOND.identity))]


def test_apply_repairs_the_queues_that_an_earlier_version_left(redis_client: "redis.Redis") -> None:
    cipher = Cipher([SECOND, FIRST])
    Records(redis_client, cipher=cipher).accept("t", QUEUED, RECIPE, DAY, (), queue=queue(FIRST.identity))
    done = Reencryption(redis_client, redis_client, cipher).apply()
    assert (done.records, done.skipped) == (1, 0) and Reencryption(redis_client, redis_client, cipher).apply().skipped == 1
    after = Cipher([SECOND])
    assert Records(redis_client, cipher=after).claims.claim_in_turn("t", QUEUED, claimant(after)) is not None


def test_an_adapter_is_queued_again_in_the_queue_of_the_present_key(redis_client: "redis.Redis") -> None:
    """Queue it again before `apply` has rewritten its record, or after an earlier version did so."""
    fill(redis_client, Cipher([FIRST]))
    both = Cipher([SECOND, FIRST])
    records = Records(redis_client, cipher=both)
    evicted = records.get("t", READY)
    assert evicted is not None and records.requeue(evicted, "evicted", queue(SECOND.identity))
    again = records.get("t", READY)
    assert again is not None and again.queue == queue(SECOND.identity) and again.queue in records.waiting.queues()
    claim = records.claims.claim_in_turn("t", READY, Claimant("w", 60_000, 3, {queue(SECOND.identity): ()}))
    assert claim is not None and claim.adapter_id == READY


def test_only_queues_that_name_the_format_of_their_jobs_get_a_key() -> None:
    plain, digits = queue(""), "12345678"
    assert with_key(plain, digits) == f"{plain}.{digits}" and with_key(f"{plain}.{digits}", "") == plain
    assert with_key(f"{plain}.{FIRST.identity}", SECOND.identity) == f"{plain}.{SECOND.identity}"
    for other in ("", "q", *earlier_queue_names("b" * 64, "c" * 64, "float32")):
        assert with_key(other, FIRST.identity) == other
