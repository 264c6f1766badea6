"""Jobs that share a pass, which is one batched inner loop."""

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import redis
import torch

from metatrain.artifacts.adapter import adapter_from_bytes
from metatrain.artifacts.baselines import lora_from_zero
from metatrain.artifacts.initialization import Initialization
from metatrain.errors import DeadlineExceeded
from metatrain.inner.config import HardSteps
from metatrain.models.base import Base
from tests.worker.jobs import SUPPORT, accept_several, recipe, status_of
from worker.job import JobRunner
from worker.ledger.claims import Claim, Claimant, Claims, WeightsLifetime
from worker.ledger.messages import Outcome
from worker.ledger.weights_cache import SealedWeights, weights_digest
from worker.runtime import Resident, Runtime
from worker.settings import WorkerSettings


def test_jobs_with_one_pass_key_share_a_pass_and_give_the_same_adapters_as_alone(
    runner: JobRunner, tiny: Base, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    recipes = accept_several(runner, tiny, 6)
    other = recipe(tiny, steps=0)
    runner.records.accept("t", "other", other, 60_000, ())
    runner.run("t", "a2")
    assert "6 jobs in one pass" in caplog.text
    for n, job in enumerate(recipes):
        record = runner.records.get("t", f"a{n}")
        assert record is not None and (record.status, record.attempt, len(record.support_loss)) == ("ready", 1, job.steps)
        shared = adapter_from_bytes(runner.store.get("t", f"a{n}", record.fence, str(record.digest)), tiny)
        alone = adapter_from_bytes(runner.runtime.adapt(job).content, tiny)
        assert shared.metadata == alone.metadata
        for name, leaf in {**alone.delta, **alone.answering}.items():
            torch.testing.assert_close({**shared.delta, **shared.answering}[name], leaf, rtol=2e-3, atol=2e-4)
    other_record = runner.records.get("t", "other")
    assert other_record is not None and other_record.status == "queued"
    assert runner.records.counts.read()["attempts"] == 6


def test_a_job_that_lost_its_worker_before_runs_alone(runner: JobRunner, tiny: Base, caplog: pytest.LogCaptureFixture) -> None:
    """Let a worker die with two jobs. Each of them then runs alone.

    If a support set crashes its worker again, this must not cost other jobs an attempt.
    """
    caplog.set_level("INFO")
    accept_several(runner, tiny, 3)
    for n in (0, 1):
        assert runner.records.claims.claim("t", f"a{n}", Claimant("dead", lease_ms=1))
    time.sleep(0.01)
    runner.run("t", "a0")
    assert [status_of(runner, n) for n in range(3)] == ["ready", "running", "queued"]
    runner.run("t", "a2")  # the wake-up names another job, but a lost one comes first
    assert [status_of(runner, n) for n in range(3)] == ["ready", "ready", "queued"]
    runner.run("t", "a2")
    assert status_of(runner, 2) == "ready"
    assert "in one pass" not in caplog.text


def test_after_a_failed_pass_jobs_run_one_by_one_with_outcomes_of_their_own(runner: JobRunner, tiny: Base) -> None:
    """Delete the second job while it runs, and let the inner loop of the third job fail."""
    runtime = runner.runtime

    class Failing(Runtime):
        def adapt_together(self, recipes: Any, **options: Any) -> Any:
            if len(recipes) > 1:
                raise RuntimeError("out of memory")
            if recipes[0].seed == 1:
                runner.records.delete("t", "a1")
            if recipes[0].seed == 2:
                raise RuntimeError("again")
            return runtime.adapt_together(recipes, **options)

    accept_several(runner, tiny, 4)
    failing = Failing(Resident(tiny, {"lora-from-zero": lora_from_zero(tiny)}))
    JobRunner("w", WorkerSettings(), runner.records, runner.store, failing).run("t", "a0")
    assert [status_of(runner, n) for n in range(4)] == ["ready", "gone", "failed", "ready"]
    failed = runner.records.get("t", "a2")
    assert failed is not None and failed.error == "internal error: RuntimeError"


def test_deleting_one_job_of_a_pass_does_not_affect_the_others(runner: JobRunner, tiny: Base, redis_client: Any) -> None:
    runtime = runner.runtime

    class DeletedMeanwhile(Runtime):
        def adapt_together(self, recipes: Any, **options: Any) -> Any:
            runner.records.delete("t", "a1")
            time.sleep(0.2)  # a heartbeat or the commit notices the deletion
            return runtime.adapt_together(recipes, **options)

    accept_several(runner, tiny, 3)
    deleting = DeletedMeanwhile(Resident(tiny, {"lora-from-zero": lora_from_zero(tiny)}))
    JobRunner("w", WorkerSettings(lease_seconds=2), runner.records, runner.store, deleting).run("t", "a0")
    assert [status_of(runner, n) for n in range(3)] == ["ready", "gone", "ready"]
    assert len(list(redis_client.scan_iter("qs:t:weights:*"))) == 2


def test_a_job_too_large_for_its_pass_runs_alone(runner: JobRunner, tiny: Base, caplog: pytest.LogCaptureFixture) -> None:
    """Include a job whose inner steps use parts of its support set, which a shared pass does not support."""
    caplog.set_level("INFO")
    init = lora_from_zero(tiny)
    init = replace(init, inner=init.inner.model_copy(update={"rows_per_step": 5}))
    runtime = Runtime(Resident(tiny, {"lora-from-zero": init}))
    recipes = [recipe(tiny, initialization_digest=init.digest, support=SUPPORT, seed=n) for n in range(2)]
    longer = (*SUPPORT, ("order a book", "order"), ("close it", "close"), ("send money", "close"))
    recipes.append(recipe(tiny, initialization_digest=init.digest, support=longer))
    assert len({job.pass_key for job in recipes}) == 1
    for n, job in enumerate(recipes):
        runner.records.accept("t", f"a{n}", job, 60_000, ())
    JobRunner("w", WorkerSettings(), runner.records, runner.store, runtime).run("t", "a0")
    assert [status_of(runner, n) for n in range(3)] == ["ready"] * 3 and "2 jobs in one pass" in caplog.text
    record = runner.records.get("t", "a2")
    assert record is not None and record.digest == weights_digest(runtime.adapt(recipes[2]).content)
    with pytest.raises(ValueError, match="cannot share a pass"):
        runtime.adapt_together([recipes[0], recipes[2]])


def test_a_job_that_exceeds_the_deadline_of_a_shared_pass_runs_again_alone(runner: JobRunner, tiny: Base) -> None:
    class Slow(Runtime):
        def adapt_together(self, recipes: Any, *, on_made: Any = None, **options: Any) -> Any:
            def late(number: int, made: Any) -> None:
                on_made(number, DeadlineExceeded("too late") if number == 1 and len(recipes) > 1 else made)

            return super().adapt_together(recipes, on_made=None if on_made is None else late, **options)

    accept_several(runner, tiny, 3)
    slow = Slow(Resident(tiny, {"lora-from-zero": lora_from_zero(tiny)}))
    JobRunner("w", WorkerSettings(), runner.records, runner.store, slow).run("t", "a0")
    assert [status_of(runner, n) for n in range(3)] == ["ready"] * 3


@pytest.mark.parametrize("settings", [WorkerSettings(attempts=1), WorkerSettings(jobs_together=1), WorkerSettings(pass_rows=15)])
def test_jobs_run_alone_with_one_attempt_or_if_the_settings_allow_no_more(
    runner: JobRunner, tiny: Base, settings: WorkerSettings
) -> None:
    accept_several(runner, tiny, 2)
    JobRunner("w", settings, runner.records, runner.store, runner.runtime).run("t", "a0")
    assert [status_of(runner, n) for n in range(2)] == ["ready", "queued"]


def test_an_error_of_one_job_of_a_pass_does_not_stop_the_others(runner: JobRunner, tiny: Base, redis_client: Any) -> None:
    """Make the record of one job unreadable, and let the server refuse the commit of another job."""

    class Refused(Claims):
        def commit(self, claim: Claim, outcome: Outcome, weights: SealedWeights | None = None) -> WeightsLifetime | None:
            if claim.adapter_id == "a1":
                raise redis.exceptions.ResponseError("no")
            return super().commit(claim, outcome, weights)

    accept_several(runner, tiny, 4)
    redis_client.hset("qs:t:adapter:a3", "recipe", '{"of": "a later version"}')
    runner.records.claims = Refused(redis_client)
    with pytest.raises(redis.exceptions.ResponseError):
        runner.run("t", "a0")
    assert [redis_client.hget(f"qs:t:adapter:a{n}", "status") for n in range(4)] == [b"ready", b"running", b"ready", b"running"]


EASY, MORE_STEPS = 2, 40


HARD = (("order pizza", "close"), ("order pizza", "order"), ("close account", "close"), ("close account", "order"))


def accept_easy_and_hard(runner: JobRunner, tiny: Base) -> Initialization:
    """Accept an easy job `a0` of 2 steps and a hard one `a1` of 40. Return their initialization."""
    init = lora_from_zero(tiny)
    hard_steps = HardSteps(shots=2, below=0.9, steps=MORE_STEPS)
    init = replace(init, inner=init.inner.model_copy(update={"steps": EASY, "hard_steps": hard_steps}))
    for number, support in enumerate((SUPPORT, HARD)):
        job = recipe(tiny, initialization_digest=init.digest, support=support, steps=None)
        runner.records.accept("t", f"a{number}", job, 60_000, ())
    return init


class Observed(Runtime):
    """A runtime that calls `observe(step)` after each inner step of a pass."""

    observe: Callable[[int], None]

    def adapt_together(self, recipes: Any, *, on_step: Any = None, **options: Any) -> Any:
        steps = itertools.count(1)

        def observing(losses: dict[int, float]) -> None:
            if len(recipes) > 1:
                self.observe(next(steps))
            if on_step is not None:
                on_step(losses)

        return super().adapt_together(recipes, on_step=observing, **options)


def observed_runner(runner: JobRunner, tiny: Base, observe: Callable[[int], None], **settings: Any) -> JobRunner:
    runtime = Observed(Resident(tiny, {"lora-from-zero": accept_easy_and_hard(runner, tiny)}))
    runtime.observe = observe
    return JobRunner("w", WorkerSettings(**settings), runner.records, runner.store, runtime)


def wait_for_ready(runner: JobRunner, number: int) -> None:
    deadline = time.monotonic() + 30
    while status_of(runner, number) != "ready":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_easy_job_is_ready_before_the_last_step_of_a_hard_one_in_its_pass(runner: JobRunner, tiny: Base) -> None:
    """Hold the hard job before its last step until the easy one is ready."""
    seen: list[str] = []

    def observe(step: int) -> None:
        if step == MORE_STEPS:
            wait_for_ready(runner, 0)
            seen.append(status_of(runner, 1))

    worker = observed_runner(runner, tiny, observe)
    worker.run("t", "a0")
    records = [runner.records.get("t", f"a{n}") for n in range(2)]
    assert [(record.status, len(record.support_loss)) for record in records if record] == [("ready", EASY), ("ready", MORE_STEPS)]
    assert seen == ["running"]
    digest = worker.runtime.residents[0].initializations["lora-from-zero"].digest
    for record, support in zip(records, (SUPPORT, HARD), strict=True):
        assert record is not None
        made = adapter_from_bytes(runner.store.get("t", record.adapter_id, record.fence, str(record.digest)), tiny)
        job = recipe(tiny, initialization_digest=digest, support=support, steps=None)
        alone = adapter_from_bytes(worker.runtime.adapt(job).content, tiny)
        for name, leaf in {**alone.delta, **alone.answering}.items():
            torch.testing.assert_close({**made.delta, **made.answering}[name], leaf, rtol=2e-3, atol=2e-4)


def test_a_pass_that_fails_later_takes_nothing_from_a_job_that_is_ready(runner: JobRunner, tiny: Base) -> None:
    """Let the pass fail when the easy job is ready. Only the hard one runs again."""

    def observe(step: int) -> None:
        if step == MORE_STEPS:
            wait_for_ready(runner, 0)
            raise RuntimeError("out of memory")

    observed_runner(runner, tiny, observe).run("t", "a0")
    records = [runner.records.get("t", f"a{n}") for n in range(2)]
    assert [(record.status, record.attempt, len(record.support_loss)) for record in records if record] == [
        ("ready", 1, EASY),
        ("ready", 1, MORE_STEPS),
    ]
    assert "refused_commits" not in runner.records.counts.read()


def test_a_stopping_worker_hands_back_only_the_jobs_that_are_not_ready(runner: JobRunner, tiny: Base) -> None:
    def observe(step: int) -> None:
        if step == EASY + 1:
            wait_for_ready(runner, 0)
            worker.draining.start()

    worker = observed_runner(runner, tiny, observe, drain_seconds=0)
    worker.run("t", "a0")
    assert [status_of(runner, n) for n in range(2)] == ["ready", "queued"]


def test_a_pass_ends_once_all_its_unfinished_jobs_are_lost(runner: JobRunner, tiny: Base) -> None:
    """Delete the hard job when the easy one is ready. Its steps end, because no job of the pass is left."""
    steps: list[int] = []

    def observe(step: int) -> None:
        steps.append(step)
        if step == EASY + 1:
            wait_for_ready(runner, 0)
            runner.records.delete("t", "a1")
        if step > EASY:
            time.sleep(0.1)  # a heartbeat notices the deletion

    observed_runner(runner, tiny, observe).run("t", "a0")
    assert [status_of(runner, n) for n in range(2)] == ["ready", "gone"]
    assert len(steps) < MORE_STEPS


def test_a_commit_that_waits_for_the_cache_holds_up_no_step(runner: JobRunner, tiny: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the cache refuse connections until the hard job has taken its last step."""
    last_step, put = threading.Event(), runner.store.put

    def unreachable_at_first(tenant: str, identity: str, *rest: Any) -> None:
        if identity == "a0" and not last_step.is_set():
            raise redis.ConnectionError
        put(tenant, identity, *rest)

    def observe(step: int) -> None:
        if step == MORE_STEPS:
            last_step.set()

    monkeypatch.setattr(runner.store, "put", unreachable_at_first)
    observed_runner(runner, tiny, observe).run("t", "a0")
    assert last_step.is_set() and [status_of(runner, n) for n in range(2)] == ["ready", "ready"]


def test_jobs_of_different_kinds_do_not_share_a_pass(tiny: Base) -> None:
    """Refuse jobs of different kinds even if they use the same initialization.

    Each kind prepares support sets in its own way.
    """
    init = lora_from_zero(tiny)
    runtime = Runtime(Resident(tiny, {"lora-from-zero": init}))
    job = recipe(tiny, initialization_digest=init.digest)
    other = job.model_copy(update={"kind": "another-kind"})
    with pytest.raises(ValueError, match="jobs of different kinds or initializations cannot share a pass"):
        runtime.adapt_together([job, other])
    assert job.pass_key.endswith(f"/{job.kind}")
