"""The runtime turns recipes into adapters."""

from dataclasses import replace
from pathlib import Path

import pytest
import redis
import torch

from metatrain.artifacts.adapter import adapter_from_bytes
from metatrain.artifacts.baselines import lora_from_zero
from metatrain.artifacts.initialization import Initialization
from metatrain.errors import AdaptationError
from metatrain.models.base import Base
from tests.worker.jobs import SUPPORT, recipe, run
from worker.initializations import KnownInitializations
from worker.job import JobRunner
from worker.ledger.initializations import StoredInitialization
from worker.ledger.records import Records
from worker.ledger.weights_cache import WeightStore, weights_digest
from worker.runtime import Resident, Runtime, load_runtime
from worker.settings import WorkerSettings


def test_label_words_add_one_example_of_each_label(runner: JobRunner, tiny: Base) -> None:
    named = tuple((text, {"close": "close_account", "order": "orderPizza"}[label]) for text, label in SUPPORT)
    spelled = (*named, ("close account", "close_account"), ("order Pizza", "orderPizza"))
    digests = [
        weights_digest(runner.runtime.adapt(recipe(tiny, support=support, label_words=words)).content)
        for support, words in ((named, True), (spelled, False), (named, False))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_label_words_are_used_if_they_predict_the_labels_of_the_examples(runner: JobRunner, tiny: Base) -> None:
    """Compare "auto" with true and false, for labels that describe their own examples or each other's."""
    words = {"close": "close_my_account", "order": "orderPizza"}
    exchanged = {"close": words["order"], "order": words["close"]}
    for names, expected in ((words, True), (exchanged, False)):
        support = tuple((text, names[label]) for text, label in SUPPORT[1:])
        auto = runner.runtime.adapt(recipe(tiny, support=support, steps=None, label_words="auto"))
        fixed = runner.runtime.adapt(recipe(tiny, support=support, steps=None, label_words=expected))
        assert auto.label_words is not None and fixed.label_words is None
        used, gain = auto.label_words
        assert used is expected and gain is not None and (gain > 0.05) is expected
        left, right = (adapter_from_bytes(made.content, tiny) for made in (auto, fixed))
        for name, leaf in {**left.delta, **left.answering}.items():
            torch.testing.assert_close(leaf, {**right.delta, **right.answering}[name], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(
    "support",
    [
        (("close", "a_b"), ("order", "a-b"), ("go", "c")),  # the words of two labels are the same
        (("order  pizza", "go"), ("go", "order_pizza"), ("stop", "c")),  # the base model sees the same words
        (("order", "日"), ("go", "c")),  # it knows no word of a label, and sees the same in each unknown one
        (("b", "a"), ("order", "b"), ("go", "c")),  # the words of a label are an example of another one
        tuple((f"text {n}", f"label {n % 2}") for n in range(20)),  # ten examples of a label
    ],
)
def test_label_words_that_cannot_be_examples_or_cannot_matter_are_not_used(
    runner: JobRunner, tiny: Base, support: tuple[tuple[str, str], ...]
) -> None:
    support = tuple(sorted(support, key=lambda pair: pair[::-1]))
    auto, fixed = (runner.runtime.adapt(recipe(tiny, support=support, label_words=words)) for words in ("auto", False))
    assert auto.label_words == (False, None) and auto.content == fixed.content


def test_recomputed_weights_are_identical_to_the_bit(runner: JobRunner, tiny: Base) -> None:
    digests = {weights_digest(runner.runtime.adapt(recipe(tiny)).content) for _ in range(3)}
    assert len(digests) == 1
    assert run(runner, recipe(tiny))[1] in digests
    other = Runtime(Resident(tiny, {"lora-from-zero": lora_from_zero(tiny)}))
    assert weights_digest(other.adapt(recipe(tiny)).content) in digests


def test_an_initialization_with_a_base_update_is_adapted_on_the_updated_base_model(tiny: Base) -> None:
    """Adapt on updated base-model parameters. The loaded base model itself must not change."""
    plain = lora_from_zero(tiny)
    moved = replace(plain, base_update={n: p + 0.2 for n, p in tiny.parameters(["encoder.layer.1.output.*"]).items()})
    runtime = Runtime(Resident(tiny, {"plain": plain, "moved": moved}))
    before, updated, after = (
        runtime.adapt(recipe(tiny, initialization_digest=init.digest)).content for init in (plain, moved, plain)
    )
    assert before == after
    plain_head, updated_head = (adapter_from_bytes(content, tiny).answering["head.weight"] for content in (before, updated))
    assert not torch.allclose(plain_head, updated_head, atol=1e-2)


def test_load_runtime_loads_the_initializations_of_its_base_model(tiny_folder: Path) -> None:
    runtime = load_runtime(
        WorkerSettings(base_model=str(tiny_folder), precision="float32", threads=torch.get_num_threads()), lambda digest: None
    )
    assert len(runtime.known.digests) == 2  # the shipped default belongs to another base model


def stored(base: Base, init: Initialization) -> StoredInitialization:
    return KnownInitializations([(base, [init])]).to_store(init.digest)


def test_a_stored_initialization_is_loaded_when_a_job_names_it(tiny: Base, redis_client: "redis.Redis") -> None:
    """Adapt from an initialization that only Redis has, and that has a base update."""
    plain = lora_from_zero(tiny)
    update = {n: p + 0.2 for n, p in tiny.parameters(["encoder.layer.1.output.*"]).items()}
    moved = replace(plain, base_update=update, name="moved", scale=plain.scale + 1)
    records = Records(redis_client)
    runtime = Runtime(Resident(tiny, {"plain": plain}), stored=records.initializations.get)
    runner = JobRunner("w", WorkerSettings(), records, WeightStore(redis_client), runtime, queues={"": [plain.digest]})
    job = recipe(tiny, initialization_digest=moved.digest)
    assert run(runner, job)[0] == "queued"  # left alone: neither in memory nor stored
    records.initializations.store(moved.digest, stored(tiny, moved))
    status, digest, _ = run(runner, job)
    loaded = Runtime(Resident(tiny, {"moved": moved})).adapt(job).content
    assert (status, digest) == ("ready", weights_digest(loaded))


def test_a_damaged_stored_initialization_fails_the_job_with_that_reason(tiny: Base, redis_client: "redis.Redis") -> None:
    plain, records = lora_from_zero(tiny), Records(redis_client)
    runtime = Runtime(Resident(tiny, {"plain": plain}), stored=records.initializations.get)
    runner = JobRunner("w", WorkerSettings(), records, WeightStore(redis_client), runtime)
    records.initializations.store("1" * 64, stored(tiny, plain))
    status, _, error = run(runner, recipe(tiny, initialization_digest="1" * 64))
    assert status == "failed" and "the stored bytes are those of another initialization" in str(error)


def test_jobs_of_an_unknown_task_kind_fail_with_that_reason(runner: JobRunner, tiny: Base) -> None:
    orphan = recipe(tiny).model_copy(update={"kind": "number-from-text"})
    with pytest.raises(AdaptationError, match=r"tasks of kind 'number-from-text' are not known to this worker"):
        runner.runtime.adapt(orphan)
    assert not runner.runtime.can_share_pass(orphan)
