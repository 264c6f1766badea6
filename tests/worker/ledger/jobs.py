"""Jobs for the tests of the ledger, and short ways to claim them."""

from worker.ledger.claims import Claim
from worker.ledger.messages import JobRecipe
from worker.ledger.records import Records

RECIPE = JobRecipe(
    initialization="default",
    initialization_digest="d" * 64,
    support=(("a", "x"), ("b", "y")),
    steps=5,
    seed=0,
    precision="float32",
)
DAY = 86_400_000
"""Milliseconds."""


def claim(records: Records, identity: str = "a1", *, lease_ms: int = 10_000, attempts: int = 3) -> Claim | None:
    return records.claims.claim("t", identity, lease_ms=lease_ms, attempts=attempts, worker="w")


def claimed(records: Records, identity: str = "a1", *, lease_ms: int = 10_000) -> Claim:
    found = claim(records, identity, lease_ms=lease_ms)
    assert found is not None
    return found
