"""Jobs from claim to commit with a real runtime on a real server."""

import json
import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
import torch

from metatrain.artifacts.adapter import adapter_from_bytes
from metatrain.artifacts.baselines import lora_from_zero
from metatrain.errors import DeadlineExceeded
from metatrain.models.base import Base
from tests.conftest import RedisServer
from worker.errors import SettingsError, WeightsMissing
from worker.ledger.claims import Claim, Claims, WeightsLifetime
from worker.ledger.messages import JobRecipe, Outcome
from worker.ledger.record import Record
from worker.ledger.records import Records
from worker.ledger.store import WeightStore, weights_digest
from worker.logs import Lines, LogFormat
from worker.runtime import MadeAdapter, Resident, Runtime, load_runtime
from worker.settings import WorkerSettings, read_settings
from worker.tasks import Hands

SUPPORT = (("close my account", "close"), ("order pizza", "order"), ("order pizza now", "order"), ("please close account", "close"))


def recipe(base: Base, **changes: object) -> JobRecipe:
    init = lora_from_zero(base)
    fields = {"initialization": init.name, "initialization_digest": init.digest, "support": SUPPORT, "steps": 3, "seed": 0}
    return JobRecipe.model_validate({**fields, "precision": "float32", **changes})


@pytest.fixture
def hands(tiny: Base, redis_client: "redis.Redis") -> Hands:
    runtime = Runtime(Resident(tiny, {"lora-from-zero": lora_from_zero(tiny)}))
    return Hands("w", WorkerSettings(), Records(redis_client), WeightStore(redis_client), runtime)


def run(hands: Hands, job: JobRecipe, identity: str = "a1") -> tuple[str, str | None, str | None]:
    hands.records.accept("t", identity, job, 60_000, ())
    hands.run("t", identity)
    record = hands.records.get("t", identity)
    assert record is not None
    return record.status, record.digest, record.error


def test_a_job_ends_with_weights_that_load_and_a_record_that_tells(hands: Hands, tiny: Base) -> None:
    status, digest, error = run(hands, recipe(tiny))
    assert (status, error) == ("ready", None)
    record = hands.records.get("t", "a1")
    assert record is not None and digest is not None
    content = hands.store.get("t", "a1", record.fence, digest)
    adapter = adapter_from_bytes(content, tiny)
    assert adapter.metadata.labels == ("close", "order")
    assert len(record.support_loss) == 3
    assert set(record.timings) == {"queue", "tokenize", "inner_loop", "store"}


def test_label_words_are_one_more_example_of_each_label(hands: Hands, tiny: Base) -> None:
    named = tuple((text, {"close": "close_account", "order": "orderPizza"}[label]) for text, label in SUPPORT)
    spelled = (*named, ("close account", "close_account"), ("order Pizza", "orderPizza"))
    digests = [
        weights_digest(hands.runtime.adapt(recipe(tiny, support=support, label_words=words)).content)
        for support, words in ((named, True), (spelled, False), (named, False))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_computed_again_it_has_the_same_bits(hands: Hands, tiny: Base) -> None:
    digests = {weights_digest(hands.runtime.adapt(recipe(tiny)).content) for _ in range(3)}
    assert len(digests) == 1
    assert run(hands, recipe(tiny))[1] in digests
    other = Runtime(Resident(tiny, {"lora-from-zero": lora_from_zero(tiny)}))
    assert weights_digest(other.adapt(recipe(tiny)).content) in digests


def test_an_initialization_with_a_base_model_of_its_own_is_adapted_on_it(tiny: Base) -> None:
    """Its outer loop moved parameters of the base model too; the model itself stays as it is."""
    plain = lora_from_zero(tiny)
    moved = replace(plain, base_update={n: p + 0.2 for n, p in tiny.parameters(["encoder.layer.1.output.*"]).items()})
    runtime = Runtime(Resident(tiny, {"plain": plain, "moved": moved}))
    before, own, after = (runtime.adapt(recipe(tiny, initialization_digest=init.digest)).content for init in (plain, moved, plain))
    assert before == after
    left, right = (adapter_from_bytes(content, tiny).answering["head.weight"] for content in (before, own))
    assert not torch.allclose(left, right, atol=1e-2)


def test_the_same_wake_up_twice_is_one_computation(hands: Hands, tiny: Base) -> None:
    run(hands, recipe(tiny))
    hands.run("t", "a1")
    record = hands.records.get("t", "a1")
    assert record is not None and record.attempt == 1
    hands.run("t", "never accepted")


def test_failures_are_data(hands: Hands, tiny: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    status, _, error = run(hands, recipe(tiny, initialization_digest="0" * 64), "a2")
    assert status == "failed" and error is not None and "is not on this worker" in error
    status, _, error = run(hands, recipe(tiny, precision="bfloat16"), "a5")
    assert status == "failed" and error is not None and "asks for bfloat16, this worker runs float32" in error
    slow = Hands("w", WorkerSettings(job_seconds=1e-9), hands.records, hands.store, hands.runtime)
    status, _, error = run(slow, recipe(tiny), "a3")
    assert status == "failed" and error is not None and "deadline after 0 of 3 steps" in error

    class Broken(Runtime):
        def adapt(self, recipe: JobRecipe, **_: object) -> MadeAdapter:
            raise RuntimeError("the text of an example: order pizza")

    broken = Hands("w", WorkerSettings(), hands.records, hands.store, Broken(Resident(tiny, {})))
    assert run(broken, recipe(tiny), "a4") == ("failed", None, "internal error: RuntimeError")


def test_a_refused_commit_leaves_no_weights(hands: Hands, tiny: Base, redis_client: "redis.Redis") -> None:
    """Deleted while it ran: the worker's commit is refused, and what it stored goes."""
    runtime = hands.runtime

    class DeletedMeanwhile(Runtime):
        def adapt(self, recipe: JobRecipe, **_: object) -> MadeAdapter:
            hands.records.delete("t", "a1")
            return runtime.adapt(recipe)

    late = Hands("w", WorkerSettings(), hands.records, hands.store, DeletedMeanwhile(Resident(tiny, {})))
    hands.records.accept("t", "a1", recipe(tiny), 60_000, ())
    late.run("t", "a1")
    assert hands.records.get("t", "a1") is None
    assert list(redis_client.scan_iter("qs:t:*")) == [b"qs:t:usage"]  # sums, and no weights
    with pytest.raises(WeightsMissing):
        hands.store.get("t", "a1", 1, "x")


def test_deletion_stops_what_runs(hands: Hands, tiny: Base) -> None:
    """The heartbeat notices within a fraction of a second, and the inner loop ends at its next step."""
    steps = []

    class Slow(Runtime):
        def adapt(self, recipe: JobRecipe, *, on_step: Any = None, **_: object) -> MadeAdapter:
            for step in range(200):
                steps.append(step)
                if step == 1:
                    hands.records.delete("t", "a1")
                time.sleep(0.02)
                on_step({0: 1.0})
            raise AssertionError("it was not stopped")

    hands.records.accept("t", "a1", recipe(tiny), 60_000, ())
    Hands("w", WorkerSettings(), hands.records, hands.store, Slow(Resident(tiny, {}))).run("t", "a1")
    assert len(steps) < 50 and hands.records.get("t", "a1") is None


def end(hands: Hands, seconds: float = 30) -> Record:
    """Wake a worker, as the reaper does, until the job has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        hands.run("t", "a1")
        record = hands.records.get("t", "a1")
        if record is not None and record.status in ("ready", "failed"):
            return record
    raise AssertionError(f"it has not ended: {record}")


def test_a_full_cache_costs_attempts_and_then_fails_with_that_reason(hands: Hands, tiny: Base, redis_client: Any) -> None:
    full = FullCache(redis_client)
    refused = Hands("w", WorkerSettings(), hands.records, full, hands.runtime)
    hands.records.accept("t", "a1", recipe(tiny), 60_000, ())
    refused.run("t", "a1")
    record = hands.records.get("t", "a1")
    assert record is not None and (record.status, record.attempt) == ("queued", 1)
    assert str(record.last_error).startswith("the cache refused the weights: command not allowed when used memory")
    failed = end(refused)
    assert failed.status == "failed" and failed.attempt == 3 and failed.digest is None
    assert str(failed.error).startswith("no worker finished this job in 3 attempts; the last one ended with: the cache refused")
    assert list(redis_client.scan_iter("qs:t:weights:*")) == []
    assert [dead.adapter_id for dead in hands.records.dead_jobs.latest()] == ["a1"]
    assert hands.records.dead_jobs.revive("t", "a1") and not hands.records.dead_jobs.revive("t", "a1")
    assert end(hands).status == "ready" and hands.records.dead_jobs.latest() == []


class FullCache(WeightStore):
    """The real server, which has no memory left while a write runs."""

    def put(self, *arguments: Any) -> None:
        server: Any = self._redis
        server.config_set("maxmemory", 1)  # a limit at what is used now would hold only until a buffer is freed
        try:
            super().put(*arguments)
        finally:
            server.config_set("maxmemory", 0)


def test_a_cache_that_is_away_costs_no_attempt(hands: Hands, tiny: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.tasks._CACHE_SECONDS", 0.3)
    nowhere = WeightStore(redis.Redis.from_url(f"unix://{tmp_path}/nothing.sock"))
    away = Hands("w", WorkerSettings(), hands.records, nowhere, hands.runtime)
    hands.records.accept("t", "a1", recipe(tiny), 60_000, ())
    for _ in range(4):
        away.run("t", "a1")
    record = hands.records.get("t", "a1")
    assert record is not None and (record.status, record.attempt) == ("queued", 0)
    assert record.last_error == "the cache is out of reach: ConnectionError"
    assert end(hands).attempt == 1


def test_a_worker_that_is_told_to_stop_finishes_what_is_short_and_hands_back_what_is_long(hands: Hands, tiny: Base) -> None:
    for seconds, status in ((60.0, "ready"), (0.0, "queued")):
        stopping = Hands("w", WorkerSettings(drain_seconds=seconds), hands.records, hands.store, hands.runtime)
        stopping.draining.begin()
        time.sleep(0.01)
        hands.records.accept("t", f"a{status}", recipe(tiny), 60_000, ())
        stopping.run("t", f"a{status}")
        record = hands.records.get("t", f"a{status}")
        assert record is not None and record.status == status
        assert (record.attempt, record.last_error) == ((1, None) if status == "ready" else (0, "its worker was stopped"))
    assert hands.records.waiting.due() == [("t", "aqueued", "")]  # no message waits for it: the next worker is told at once


def test_the_server_of_records_and_weights_may_be_away_while_a_job_runs(tiny: Base, redis_server: RedisServer) -> None:
    """The outcome is kept until it is back, and no attempt is gone."""
    client = redis.Redis.from_url(redis_server.url)
    runtime = Runtime(Resident(tiny, {"lora-from-zero": lora_from_zero(tiny)}))

    class OutageMeanwhile(Runtime):
        def adapt(self, recipe: JobRecipe, **_: object) -> MadeAdapter:
            product = runtime.adapt(recipe)
            redis_server.stop()
            threading.Timer(1.0, redis_server.start).start()
            return product

    hands = Hands("w", WorkerSettings(), Records(client), WeightStore(client), OutageMeanwhile(Resident(tiny, {})))
    hands.records.accept("t", "a1", recipe(tiny), 60_000, ())
    hands.run("t", "a1")
    record = hands.records.get("t", "a1")
    assert record is not None and (record.status, record.attempt) == ("ready", 1)
    assert hands.store.get("t", "a1", record.fence, str(record.digest))
    client.close()


def test_a_lost_answer_to_the_commit_costs_no_weights(hands: Hands, tiny: Base, redis_client: "redis.Redis") -> None:
    class LosesTheFirstAnswer(Claims):
        lost = False

        def commit(self, claim: Claim, outcome: Outcome) -> WeightsLifetime | None:
            found = super().commit(claim, outcome)
            if not self.lost:
                self.lost = True
                raise redis.exceptions.TimeoutError
            return found

    hands.records.claims = LosesTheFirstAnswer(redis_client)
    assert run(hands, recipe(tiny))[0] == "ready"
    record = hands.records.get("t", "a1")
    assert record is not None and hands.store.has("t", "a1", record.fence)


@pytest.mark.parametrize("pinned", [True, False])
def test_pinned_or_unpinned_while_it_runs(hands: Hands, tiny: Base, redis_client: Any, pinned: bool) -> None:
    runtime = hands.runtime

    class PinnedMeanwhile(Runtime):
        def adapt(self, recipe: JobRecipe, **_: object) -> MadeAdapter:
            hands.records.pin("t", "a1", pinned)
            return runtime.adapt(recipe)

    hands.records.accept("t", "a1", recipe(tiny), 60_000, ())
    hands.records.pin("t", "a1", not pinned)
    Hands("w", WorkerSettings(), hands.records, hands.store, PinnedMeanwhile(Resident(tiny, {}))).run("t", "a1")
    (key,) = redis_client.scan_iter("qs:t:weights:*")
    assert redis_client.pttl(key) == -1 if pinned else 0 < redis_client.pttl(key) <= 60_000


@pytest.mark.parametrize(
    ("form", "field"), [("text", r"attempt=1 fence=\d+ request=r7"), ("json", r'"attempt": 1, "fence": \d+, "request": "r7"')]
)
def test_lines_say_whose_they_are_and_nothing_of_the_support_set(
    hands: Hands, tiny: Base, caplog: pytest.LogCaptureFixture, form: LogFormat, field: str
) -> None:
    class Broken(Runtime):
        def adapt(self, recipe: JobRecipe, **_: object) -> MadeAdapter:
            raise RuntimeError(f"a message that quotes {recipe.support[0][0]}")

    caplog.set_level("DEBUG")
    caplog.handler.setFormatter(Lines("worker", form))
    broken = Hands("w", WorkerSettings(), hands.records, hands.store, Broken(Resident(tiny, {})))
    hands.records.accept("t", "a1", recipe(tiny), 60_000, (), "r7")
    broken.run("t", "a1")
    record = hands.records.get("t", "a1")
    assert record is not None and record.error == "internal error: RuntimeError"
    assert "RuntimeError" in caplog.text and re.search(field, caplog.text)
    if form == "json":
        assert all(json.loads(line)["adapter"] == "a1" for line in caplog.text.splitlines())
    assert not any(text in caplog.text for text, _ in SUPPORT)


def test_load_runtime_probes_and_lists_what_it_has(tiny_folder: Path) -> None:
    runtime = load_runtime(WorkerSettings(base_model=str(tiny_folder), precision="float32", threads=torch.get_num_threads()))
    assert len(runtime.by_digest) == 2  # the shipped default belongs to another base model


def test_settings_name_the_variable_and_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEASE_SECONDS", "soon")
    with pytest.raises(SettingsError, match=r"LEASE_SECONDS: .* got 'soon'"):
        read_settings(WorkerSettings)


def waiting(hands: Hands, tiny: Base, count: int, **changes: object) -> list[JobRecipe]:
    """Jobs of one kin: other texts, two or three classes."""
    recipes = []
    for n in range(count):
        support = [(f"{text} {'now ' * (n % 3)}", label) for text, label in SUPPORT]
        if n % 2:
            support[-1] = (support[-1][0], "third")
        recipes.append(recipe(tiny, support=tuple(support), seed=n, **changes))
        hands.records.accept("t", f"a{n}", recipes[-1], 60_000, ())
    return recipes


def test_jobs_of_one_kin_run_in_one_pass_and_end_as_alone(hands: Hands, tiny: Base, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    recipes = waiting(hands, tiny, 6)
    other = recipe(tiny, steps=0)
    hands.records.accept("t", "other", other, 60_000, ())
    hands.run("t", "a2")
    assert "6 jobs in one pass" in caplog.text
    for n, job in enumerate(recipes):
        record = hands.records.get("t", f"a{n}")
        assert record is not None and (record.status, record.attempt, len(record.support_loss)) == ("ready", 1, job.steps)
        found = adapter_from_bytes(hands.store.get("t", f"a{n}", record.fence, str(record.digest)), tiny)
        alone = adapter_from_bytes(hands.runtime.adapt(job).content, tiny)
        assert found.metadata == alone.metadata
        for name, leaf in {**alone.delta, **alone.answering}.items():
            torch.testing.assert_close({**found.delta, **found.answering}[name], leaf, rtol=2e-3, atol=2e-4)
    left = hands.records.get("t", "other")
    assert left is not None and left.status == "queued"
    assert hands.records.counts.read()["attempts"] == 6


def test_what_cost_a_worker_before_runs_alone(hands: Hands, tiny: Base, caplog: pytest.LogCaptureFixture) -> None:
    """A support set that kills its workers must not take others with it twice."""
    caplog.set_level("INFO")
    waiting(hands, tiny, 3)
    for n in (0, 1):
        assert hands.records.claims.claim("t", f"a{n}", lease_ms=1, attempts=3, worker="dead")
    time.sleep(0.01)
    hands.run("t", "a0")
    assert [statuses(hands, n) for n in range(3)] == ["ready", "running", "queued"]
    hands.run("t", "a2")
    assert [statuses(hands, n) for n in range(3)] == ["ready", "running", "ready"]
    assert "in one pass" not in caplog.text


def statuses(hands: Hands, number: int) -> str:
    record = hands.records.get("t", f"a{number}")
    return "gone" if record is None else record.status


def test_a_pass_that_fails_is_done_one_by_one_and_each_job_has_its_own_end(hands: Hands, tiny: Base) -> None:
    """The second is deleted while it runs, the third's maths fails."""
    runtime = hands.runtime

    class Failing(Runtime):
        def adapt_together(self, recipes: Any, **how: Any) -> Any:
            if len(recipes) > 1:
                raise RuntimeError("out of memory")
            if recipes[0].seed == 1:
                hands.records.delete("t", "a1")
            if recipes[0].seed == 2:
                raise RuntimeError("again")
            return runtime.adapt_together(recipes, **how)

    waiting(hands, tiny, 4)
    failing = Failing(Resident(tiny, {"lora-from-zero": lora_from_zero(tiny)}))
    Hands("w", WorkerSettings(), hands.records, hands.store, failing).run("t", "a0")
    assert [statuses(hands, n) for n in range(4)] == ["ready", "gone", "failed", "ready"]
    failed = hands.records.get("t", "a2")
    assert failed is not None and failed.error == "internal error: RuntimeError"


def test_one_deleted_while_they_run_together_the_others_end(hands: Hands, tiny: Base, redis_client: Any) -> None:
    runtime = hands.runtime

    class DeletedMeanwhile(Runtime):
        def adapt_together(self, recipes: Any, **how: Any) -> Any:
            hands.records.delete("t", "a1")
            time.sleep(0.2)  # a heartbeat or the commit notices
            return runtime.adapt_together(recipes, **how)

    waiting(hands, tiny, 3)
    watching = DeletedMeanwhile(Resident(tiny, {"lora-from-zero": lora_from_zero(tiny)}))
    Hands("w", WorkerSettings(lease_seconds=2), hands.records, hands.store, watching).run("t", "a0")
    assert [statuses(hands, n) for n in range(3)] == ["ready", "gone", "ready"]
    assert len(list(redis_client.scan_iter("qs:t:weights:*"))) == 2


def test_told_to_stop_all_of_a_pass_are_handed_back(hands: Hands, tiny: Base) -> None:
    waiting(hands, tiny, 3)
    stopping = Hands("w", WorkerSettings(drain_seconds=0), hands.records, hands.store, hands.runtime)
    stopping.draining.begin()
    time.sleep(0.01)
    stopping.run("t", "a0")
    assert [statuses(hands, n) for n in range(3)] == ["queued"] * 3
    assert hands.records.counts.read().get("dead") is None
    assert {record.attempt for n in range(3) if (record := hands.records.get("t", f"a{n}")) is not None} == {0}


def test_a_mate_too_large_for_one_pass_runs_alone(hands: Hands, tiny: Base, caplog: pytest.LogCaptureFixture) -> None:
    """Its support set is walked through in parts, which a pass of several has not."""
    caplog.set_level("INFO")
    init = lora_from_zero(tiny)
    init = replace(init, inner=init.inner.model_copy(update={"rows_per_step": 5}))
    runtime = Runtime(Resident(tiny, {"lora-from-zero": init}))
    recipes = [recipe(tiny, initialization_digest=init.digest, support=SUPPORT, seed=n) for n in range(2)]
    longer = (*SUPPORT, ("order a book", "order"), ("close it", "close"), ("send money", "close"))
    recipes.append(recipe(tiny, initialization_digest=init.digest, support=longer))
    assert len({job.kin for job in recipes}) == 1
    for n, job in enumerate(recipes):
        hands.records.accept("t", f"a{n}", job, 60_000, ())
    Hands("w", WorkerSettings(), hands.records, hands.store, runtime).run("t", "a0")
    assert [statuses(hands, n) for n in range(3)] == ["ready"] * 3 and "2 jobs in one pass" in caplog.text
    record = hands.records.get("t", "a2")
    assert record is not None and record.digest == weights_digest(runtime.adapt(recipes[2]).content)
    with pytest.raises(ValueError, match="cannot share a pass"):
        runtime.adapt_together([recipes[0], recipes[2]])


def test_who_had_no_time_beside_others_gets_it_alone(hands: Hands, tiny: Base) -> None:
    class Crowded(Runtime):
        def adapt_together(self, recipes: Any, **how: Any) -> Any:
            made = super().adapt_together(recipes, **how)
            return made if len(made) == 1 else [made[0], DeadlineExceeded("too late"), made[2]]

    waiting(hands, tiny, 3)
    crowded = Crowded(Resident(tiny, {"lora-from-zero": lora_from_zero(tiny)}))
    Hands("w", WorkerSettings(), hands.records, hands.store, crowded).run("t", "a0")
    assert [statuses(hands, n) for n in range(3)] == ["ready"] * 3


@pytest.mark.parametrize("settings", [WorkerSettings(attempts=1), WorkerSettings(jobs_together=1), WorkerSettings(pass_rows=15)])
def test_jobs_run_alone_where_a_lost_worker_would_end_them_or_so_it_is_set(
    hands: Hands, tiny: Base, settings: WorkerSettings
) -> None:
    waiting(hands, tiny, 2)
    Hands("w", settings, hands.records, hands.store, hands.runtime).run("t", "a0")
    assert [statuses(hands, n) for n in range(2)] == ["ready", "queued"]


def test_trouble_with_one_job_of_a_pass_leaves_none_of_the_others(hands: Hands, tiny: Base, redis_client: Any) -> None:
    """One whose record nobody can read, and one whose commit is refused by the server."""

    class Refused(Claims):
        def commit(self, claim: Claim, outcome: Outcome) -> WeightsLifetime | None:
            if claim.adapter_id == "a1":
                raise redis.exceptions.ResponseError("no")
            return super().commit(claim, outcome)

    waiting(hands, tiny, 4)
    redis_client.hset("qs:t:adapter:a3", "recipe", '{"of": "a later version"}')
    hands.records.claims = Refused(redis_client)
    with pytest.raises(redis.exceptions.ResponseError):
        hands.run("t", "a0")
    assert [redis_client.hget(f"qs:t:adapter:a{n}", "status") for n in range(4)] == [b"ready", b"running", b"ready", b"running"]
