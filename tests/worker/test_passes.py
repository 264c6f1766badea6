"""Jobs that share a pass, which is one batched inner loop."""

import time
from dataclasses import replace
from typing import Any

import pytest
import redis
import torch

from metatrain.artifacts.adapter import adapter_from_bytes
from metatrain.artifacts.baselines import lora_from_zero
from metatrain.errors import DeadlineExceeded
from metatrain.models.base import Base
from tests.worker.jobs import SUPPORT, accept_several, recipe, status_of
from worker.job import JobRunner
from worker.ledger.claims import Claim, Claimant, Claims, WeightsLifetime
from worker.ledger.messages import Outcome
from worker.ledger.weights_cache import weights_digest
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
        def adapt_together(self, recipes: Any, **options: Any) -> Any:
            made = super().adapt_together(recipes, **options)
            return made if len(made) == 1 else [made[0], DeadlineExceeded("too late"), made[2]]

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
        def commit(self, claim: Claim, outcome: Outcome) -> WeightsLifetime | None:
            if claim.adapter_id == "a1":
                raise redis.exceptions.ResponseError("no")
            return super().commit(claim, outcome)

    accept_several(runner, tiny, 4)
    redis_client.hset("qs:t:adapter:a3", "recipe", '{"of": "a later version"}')
    runner.records.claims = Refused(redis_client)
    with pytest.raises(redis.exceptions.ResponseError):
        runner.run("t", "a0")
    assert [redis_client.hget(f"qs:t:adapter:a{n}", "status") for n in range(4)] == [b"ready", b"running", b"ready", b"running"]


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
