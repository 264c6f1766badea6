"""Several jobs in one pass."""

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
from worker.ledger.claims import Claim, Claims, WeightsLifetime
from worker.ledger.messages import Outcome
from worker.ledger.weights_cache import weights_digest
from worker.runtime import Resident, Runtime
from worker.settings import WorkerSettings


def test_jobs_of_one_kin_run_in_one_pass_and_end_as_alone(runner: JobRunner, tiny: Base, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    recipes = accept_several(runner, tiny, 6)
    other = recipe(tiny, steps=0)
    runner.records.accept("t", "other", other, 60_000, ())
    runner.run("t", "a2")
    assert "6 jobs in one pass" in caplog.text
    for n, job in enumerate(recipes):
        record = runner.records.get("t", f"a{n}")
        assert record is not None and (record.status, record.attempt, len(record.support_loss)) == ("ready", 1, job.steps)
        found = adapter_from_bytes(runner.store.get("t", f"a{n}", record.fence, str(record.digest)), tiny)
        alone = adapter_from_bytes(runner.runtime.adapt(job).content, tiny)
        assert found.metadata == alone.metadata
        for name, leaf in {**alone.delta, **alone.answering}.items():
            torch.testing.assert_close({**found.delta, **found.answering}[name], leaf, rtol=2e-3, atol=2e-4)
    left = runner.records.get("t", "other")
    assert left is not None and left.status == "queued"
    assert runner.records.counts.read()["attempts"] == 6


def test_what_cost_a_worker_before_runs_alone(runner: JobRunner, tiny: Base, caplog: pytest.LogCaptureFixture) -> None:
    """A support set that kills its workers must not take others with it twice."""
    caplog.set_level("INFO")
    accept_several(runner, tiny, 3)
    for n in (0, 1):
        assert runner.records.claims.claim("t", f"a{n}", lease_ms=1, attempts=3, worker="dead")
    time.sleep(0.01)
    runner.run("t", "a0")
    assert [status_of(runner, n) for n in range(3)] == ["ready", "running", "queued"]
    runner.run("t", "a2")
    assert [status_of(runner, n) for n in range(3)] == ["ready", "running", "ready"]
    assert "in one pass" not in caplog.text


def test_a_pass_that_fails_is_done_one_by_one_and_each_job_has_its_own_end(runner: JobRunner, tiny: Base) -> None:
    """The second is deleted while it runs, the third's maths fails."""
    runtime = runner.runtime

    class Failing(Runtime):
        def adapt_together(self, recipes: Any, **how: Any) -> Any:
            if len(recipes) > 1:
                raise RuntimeError("out of memory")
            if recipes[0].seed == 1:
                runner.records.delete("t", "a1")
            if recipes[0].seed == 2:
                raise RuntimeError("again")
            return runtime.adapt_together(recipes, **how)

    accept_several(runner, tiny, 4)
    failing = Failing(Resident(tiny, {"lora-from-zero": lora_from_zero(tiny)}))
    JobRunner("w", WorkerSettings(), runner.records, runner.store, failing).run("t", "a0")
    assert [status_of(runner, n) for n in range(4)] == ["ready", "gone", "failed", "ready"]
    failed = runner.records.get("t", "a2")
    assert failed is not None and failed.error == "internal error: RuntimeError"


def test_one_deleted_while_they_run_together_the_others_end(runner: JobRunner, tiny: Base, redis_client: Any) -> None:
    runtime = runner.runtime

    class DeletedMeanwhile(Runtime):
        def adapt_together(self, recipes: Any, **how: Any) -> Any:
            runner.records.delete("t", "a1")
            time.sleep(0.2)  # a heartbeat or the commit notices
            return runtime.adapt_together(recipes, **how)

    accept_several(runner, tiny, 3)
    watching = DeletedMeanwhile(Resident(tiny, {"lora-from-zero": lora_from_zero(tiny)}))
    JobRunner("w", WorkerSettings(lease_seconds=2), runner.records, runner.store, watching).run("t", "a0")
    assert [status_of(runner, n) for n in range(3)] == ["ready", "gone", "ready"]
    assert len(list(redis_client.scan_iter("qs:t:weights:*"))) == 2


def test_a_job_too_large_for_its_pass_runs_alone(runner: JobRunner, tiny: Base, caplog: pytest.LogCaptureFixture) -> None:
    """Its support set is walked through in parts, which a pass of several has not."""
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


def test_who_had_no_time_beside_others_gets_it_alone(runner: JobRunner, tiny: Base) -> None:
    class Crowded(Runtime):
        def adapt_together(self, recipes: Any, **how: Any) -> Any:
            made = super().adapt_together(recipes, **how)
            return made if len(made) == 1 else [made[0], DeadlineExceeded("too late"), made[2]]

    accept_several(runner, tiny, 3)
    crowded = Crowded(Resident(tiny, {"lora-from-zero": lora_from_zero(tiny)}))
    JobRunner("w", WorkerSettings(), runner.records, runner.store, crowded).run("t", "a0")
    assert [status_of(runner, n) for n in range(3)] == ["ready"] * 3


@pytest.mark.parametrize("settings", [WorkerSettings(attempts=1), WorkerSettings(jobs_together=1), WorkerSettings(pass_rows=15)])
def test_jobs_run_alone_where_a_lost_worker_would_end_them_or_so_it_is_set(
    runner: JobRunner, tiny: Base, settings: WorkerSettings
) -> None:
    accept_several(runner, tiny, 2)
    JobRunner("w", settings, runner.records, runner.store, runner.runtime).run("t", "a0")
    assert [status_of(runner, n) for n in range(2)] == ["ready", "queued"]


def test_trouble_with_one_job_of_a_pass_leaves_none_of_the_others(runner: JobRunner, tiny: Base, redis_client: Any) -> None:
    """One whose record nobody can read, and one whose commit is refused by the server."""

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
