"""A job recipe for the tests of the ledger, and helpers that claim jobs."""

from worker.ledger.claims import Claim, Claimant
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
"""A day in milliseconds."""


def claim(records: Records, identity: str = "a1", *, lease_ms: int = 10_000, attempts: int = 3) -> Claim | None:
    return records.claims.claim("t", identity, Claimant("w", lease_ms, attempts))


def claimed(records: Records, identity: str = "a1", *, lease_ms: int = 10_000) -> Claim:
    """Claim a job. Fail if it cannot be claimed."""
    result = claim(records, identity, lease_ms=lease_ms)
    assert result is not None
    return result
