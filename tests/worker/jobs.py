"""Jobs for the tests of a worker, and short ways to run them."""

import time

from metatrain.artifacts.baselines import lora_from_zero
from metatrain.models.base import Base
from worker.job import JobRunner
from worker.ledger.messages import JobRecipe
from worker.ledger.record import Record

SUPPORT = (("close my account", "close"), ("order pizza", "order"), ("order pizza now", "order"), ("please close account", "close"))


def recipe(base: Base, **changes: object) -> JobRecipe:
    init = lora_from_zero(base)
    fields = {"initialization": init.name, "initialization_digest": init.digest, "support": SUPPORT, "steps": 3, "seed": 0}
    return JobRecipe.model_validate({**fields, "precision": "float32", **changes})


def run(runner: JobRunner, job: JobRecipe, identity: str = "a1") -> tuple[str, str | None, str | None]:
    runner.records.accept("t", identity, job, 60_000, ())
    runner.run("t", identity)
    record = runner.records.get("t", identity)
    assert record is not None
    return record.status, record.digest, record.error


def end(runner: JobRunner, seconds: float = 30) -> Record:
    """Wake a worker, as the reaper does, until the job has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        runner.run("t", "a1")
        record = runner.records.get("t", "a1")
        if record is not None and record.status in ("ready", "failed"):
            return record
    raise AssertionError(f"it has not ended: {record}")


def accept_several(runner: JobRunner, tiny: Base, count: int, **changes: object) -> list[JobRecipe]:
    """Accept jobs of one pass key: other texts, two or three classes."""
    recipes = []
    for n in range(count):
        support = [(f"{text} {'now ' * (n % 3)}", label) for text, label in SUPPORT]
        if n % 2:
            support[-1] = (support[-1][0], "third")
        recipes.append(recipe(tiny, support=tuple(support), seed=n, **changes))
        runner.records.accept("t", f"a{n}", recipes[-1], 60_000, ())
    return recipes


def status_of(runner: JobRunner, number: int) -> str:
    record = runner.records.get("t", f"a{number}")
    return "gone" if record is None else record.status
