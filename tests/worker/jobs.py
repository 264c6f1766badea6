"""Jobs for the worker's tests, and helpers that run them."""

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
    """Accept a job and run it. Return its status, digest and error."""
    runner.records.accept("t", identity, job, 60_000, ())
    runner.run("t", identity)
    record = runner.records.get("t", identity)
    assert record is not None
    return record.status, record.digest, record.error


def run_until_finished(runner: JobRunner, seconds: float = 30) -> Record:
    """Run job `a1` repeatedly, as the reaper's wake-ups do, until it has ended. Return its record."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        runner.run("t", "a1")
        record = runner.records.get("t", "a1")
        if record is not None and record.status in ("ready", "failed"):
            return record
    raise AssertionError(f"the job has not ended after {seconds} s: {record}")


def accept_several(runner: JobRunner, tiny: Base, count: int, **changes: object) -> list[JobRecipe]:
    """Accept jobs `a0`, `a1`, … with the same pass key, so that they can share one batched inner loop.

    The jobs have different texts, and two or three classes.
    """
    recipes = []
    for n in range(count):
        support = [(f"{text} {'now ' * (n % 3)}", label) for text, label in SUPPORT]
        if n % 2:
            support[-1] = (support[-1][0], "third")
        recipes.append(recipe(tiny, support=tuple(support), seed=n, **changes))
        runner.records.accept("t", f"a{n}", recipes[-1], 60_000, ())
    return recipes


def status_of(runner: JobRunner, number: int) -> str:
    """Return the status of the job `aNUMBER`, or "gone" if it has no record."""
    record = runner.records.get("t", f"a{number}")
    return "gone" if record is None else record.status
