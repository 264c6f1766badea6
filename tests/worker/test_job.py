"""Jobs from claim to commit, with a real runtime and a real Redis server."""

import json
import re
import threading
from typing import Any

import pytest
import redis

from metatrain.artifacts.adapter import adapter_from_bytes
from metatrain.artifacts.baselines import lora_from_zero
from metatrain.models.base import Base
from tests.conftest import RedisServer
from tests.worker.jobs import SUPPORT, recipe, run
from worker.errors import WeightsMissing
from worker.job import JobRunner
from worker.ledger.claims import Claim, Claimant, Claims, WeightsLifetime
from worker.ledger.messages import TEXT_CLASSIFICATION, JobRecipe, Outcome
from worker.ledger.records import Records
from worker.ledger.weights_cache import SealedWeights, WeightStore
from worker.logs import FieldsFormatter, LogFormat
from worker.runtime import MadeAdapter, Resident, Runtime
from worker.settings import WorkerSettings


def test_a_job_ends_with_weights_that_load_and_a_complete_record(runner: JobRunner, tiny: Base) -> None:
    status, digest, error = run(runner, recipe(tiny))
    assert (status, error) == ("ready", None)
    record = runner.records.get("t", "a1")
    assert record is not None and digest is not None
    content = runner.store.get("t", "a1", record.fence, digest)
    adapter = adapter_from_bytes(content, tiny)
    assert adapter.metadata.labels == ("close", "order")
    assert len(record.support_loss) == 3
    assert set(record.timings) == {"queue", "tokenize", "inner_loop", "store"}


def test_a_repeated_wake_up_does_not_run_the_job_again(runner: JobRunner, tiny: Base) -> None:
    run(runner, recipe(tiny))
    runner.run("t", "a1")
    record = runner.records.get("t", "a1")
    assert record is not None and record.attempt == 1
    runner.run("t", "never accepted")


def test_the_reason_of_a_failure_is_in_the_record(runner: JobRunner, tiny: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    status, _, error = run(runner, recipe(tiny, initialization_digest="0" * 64), "a2")
    assert status == "failed" and error is not None and "is neither on this worker nor stored" in error
    status, _, error = run(runner, recipe(tiny, precision="bfloat16"), "a5")
    assert status == "failed" and error is not None and "asks for bfloat16, this worker runs float32" in error
    slow = JobRunner("w", WorkerSettings(job_seconds=1e-9), runner.records, runner.store, runner.runtime)
    status, _, error = run(slow, recipe(tiny), "a3")
    assert status == "failed" and error is not None and "deadline after 0 of 3 steps" in error

    class Broken(Runtime):
        def adapt(self, recipe: JobRecipe, **_: object) -> MadeAdapter:
            raise RuntimeError("the text of an example: order pizza")

    broken = JobRunner("w", WorkerSettings(), runner.records, runner.store, Broken(Resident(tiny, {})))
    assert run(broken, recipe(tiny), "a4") == ("failed", None, "internal error: RuntimeError")


def test_a_refused_commit_leaves_no_weights(runner: JobRunner, tiny: Base, redis_client: "redis.Redis") -> None:
    """Delete a job while it runs. The worker's commit is refused, and its weights are removed."""
    runtime = runner.runtime

    class DeletedMeanwhile(Runtime):
        def adapt(self, recipe: JobRecipe, **_: object) -> MadeAdapter:
            runner.records.delete("t", "a1")
            return runtime.adapt(recipe)

    late = JobRunner("w", WorkerSettings(), runner.records, runner.store, DeletedMeanwhile(Resident(tiny, {})))
    runner.records.accept("t", "a1", recipe(tiny), 60_000, ())
    late.run("t", "a1")
    assert runner.records.get("t", "a1") is None
    assert set(redis_client.scan_iter("qs:t:*")) == {b"qs:t:usage", b"qs:t:audit"}  # and no weights
    with pytest.raises(WeightsMissing):
        runner.store.get("t", "a1", 1, "x")


def test_a_job_survives_an_outage_of_the_server_of_records_and_weights(tiny: Base, redis_server: RedisServer) -> None:
    """Stop Redis during a job. The worker keeps the result until Redis is back and uses up no attempt."""
    client = redis.Redis.from_url(redis_server.url)
    runtime = Runtime(Resident(tiny, {"lora-from-zero": lora_from_zero(tiny)}))

    class OutageMeanwhile(Runtime):
        def adapt(self, recipe: JobRecipe, **_: object) -> MadeAdapter:
            made = runtime.adapt(recipe)
            redis_server.stop()
            threading.Timer(1.0, redis_server.start).start()
            return made

    runner = JobRunner("w", WorkerSettings(), Records(client), WeightStore(client), OutageMeanwhile(Resident(tiny, {})))
    runner.records.accept("t", "a1", recipe(tiny), 60_000, ())
    runner.run("t", "a1")
    record = runner.records.get("t", "a1")
    assert record is not None and (record.status, record.attempt) == ("ready", 1)
    assert runner.store.get("t", "a1", record.fence, str(record.digest))
    client.close()


def test_a_lost_answer_to_a_commit_does_not_lose_the_weights(runner: JobRunner, tiny: Base, redis_client: "redis.Redis") -> None:
    class LosesTheFirstAnswer(Claims):
        lost = False

        def commit(self, claim: Claim, outcome: Outcome, weights: SealedWeights | None = None) -> WeightsLifetime | None:
            lifetime = super().commit(claim, outcome, weights)
            if not self.lost:
                self.lost = True
                raise redis.exceptions.TimeoutError
            return lifetime

    runner.records.claims = LosesTheFirstAnswer(redis_client)
    assert run(runner, recipe(tiny))[0] == "ready"
    record = runner.records.get("t", "a1")
    assert record is not None and runner.store.has("t", "a1", record.fence)


@pytest.mark.parametrize("pinned", [True, False])
def test_pinning_a_running_job_sets_the_ttl_of_its_weights(runner: JobRunner, tiny: Base, redis_client: Any, pinned: bool) -> None:
    runtime = runner.runtime

    class PinnedMeanwhile(Runtime):
        def adapt(self, recipe: JobRecipe, **_: object) -> MadeAdapter:
            runner.records.pin("t", "a1", pinned)
            return runtime.adapt(recipe)

    runner.records.accept("t", "a1", recipe(tiny), 60_000, ())
    runner.records.pin("t", "a1", not pinned)
    JobRunner("w", WorkerSettings(), runner.records, runner.store, PinnedMeanwhile(Resident(tiny, {}))).run("t", "a1")
    (key,) = redis_client.scan_iter("qs:t:weights:*")
    assert redis_client.pttl(key) == -1 if pinned else 0 < redis_client.pttl(key) <= 60_000


@pytest.mark.parametrize(
    ("form", "field"), [("text", r"attempt=1 fence=\d+ request=r7"), ("json", r'"attempt": 1, "fence": \d+, "request": "r7"')]
)
def test_log_lines_name_the_job_and_quote_nothing_of_the_support_set(
    runner: JobRunner, tiny: Base, caplog: pytest.LogCaptureFixture, form: LogFormat, field: str
) -> None:
    class Broken(Runtime):
        def adapt(self, recipe: JobRecipe, **_: object) -> MadeAdapter:
            raise RuntimeError(f"a message that quotes {recipe.support[0][0]}")

    caplog.set_level("DEBUG")
    caplog.handler.setFormatter(FieldsFormatter("worker", form))
    broken = JobRunner("w", WorkerSettings(), runner.records, runner.store, Broken(Resident(tiny, {})))
    runner.records.accept("t", "a1", recipe(tiny), 60_000, (), "r7")
    broken.run("t", "a1")
    record = runner.records.get("t", "a1")
    assert record is not None and record.error == "internal error: RuntimeError"
    assert "RuntimeError" in caplog.text and re.search(field, caplog.text)
    if form == "json":
        assert all(json.loads(line)["adapter"] == "a1" for line in caplog.text.splitlines())
    assert not any(text in caplog.text for text, _ in SUPPORT)


def test_a_quiet_tenants_job_is_next_after_the_running_pass(runner: JobRunner, tiny: Base) -> None:
    """Queue six jobs of one tenant, then one of another, and give the worker the wake-ups in that order."""
    runner = JobRunner("w", WorkerSettings(jobs_together=2), runner.records, runner.store, runner.runtime)
    for number in range(6):
        runner.records.accept("busy", f"a{number}", recipe(tiny, seed=number), 60_000, ())
    runner.run("busy", "a0")
    runner.records.accept("quiet", "b", recipe(tiny, seed=9), 60_000, ())

    def ready() -> list[str]:
        jobs = [("quiet", "b"), *(("busy", f"a{number}") for number in range(6))]
        records = {job: runner.records.get(*job) for job in jobs}
        return [identity for (_, identity), record in records.items() if record is not None and record.status == "ready"]

    assert ready() == ["a0", "a1"]
    runner.run("busy", "a1")
    assert ready() == ["b", "a0", "a1", "a2"]  # a2 shares the pass: one place for each tenant
    for wake_up in (("busy", f"a{number}") for number in range(2, 6)):
        runner.run(*wake_up)
    assert ready() == ["b", "a0", "a1", "a2", "a3", "a4", "a5"]


def test_the_time_of_a_pass_is_measured_in_the_queue_of_its_job(runner: JobRunner, tiny: Base) -> None:
    """Run a job from the queue of an earlier encryption key, which is not the queue of new jobs."""
    of_key = f"{runner.runtime.residents[0].queue(TEXT_CLASSIFICATION, 2)}.12345678"
    worker = JobRunner("w", WorkerSettings(), runner.records, runner.store, runner.runtime, {of_key: ()})
    runner.records.accept("t", "a1", recipe(tiny), 60_000, (), queue=of_key)
    worker.run("t", "a1")
    worker.times.write()
    loads = runner.records.queue_loads.read()
    assert list(loads) == [of_key] and (loads[of_key].job_seconds or 0) > 0


def test_a_pass_has_no_more_jobs_of_any_tenant_than_of_the_one_whose_turn_it_is(runner: JobRunner, tiny: Base) -> None:
    for number in range(6):
        runner.records.accept("busy", f"a{number}", recipe(tiny, seed=number), 60_000, ())
    for tenant in ("first", "second", "third"):
        runner.records.accept(tenant, "b", recipe(tiny, seed=9), 60_000, ())
    runner.records.claims.claim("busy", "a0", Claimant("dead"))  # so that it is the others' turn

    def ready(tenant: str) -> int:
        return sum(record.status == "ready" for record in runner.records.page(tenant, 100, None)[0])

    runner.run("first", "b")
    assert [ready(tenant) for tenant in ("first", "second", "third", "busy")] == [1, 1, 1, 1]
    runner.run("busy", "a1")
    assert ready("busy") == 5
