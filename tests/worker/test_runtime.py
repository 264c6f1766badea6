"""What a runtime makes of a recipe."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metatrain.artifacts.adapter import adapter_from_bytes
from metatrain.artifacts.baselines import lora_from_zero
from metatrain.errors import AdaptationError
from metatrain.models.base import Base
from tests.worker.jobs import SUPPORT, recipe, run
from worker.job import JobRunner
from worker.ledger.weights_cache import weights_digest
from worker.runtime import Resident, Runtime, load_runtime
from worker.settings import WorkerSettings


def test_label_words_are_one_more_example_of_each_label(runner: JobRunner, tiny: Base) -> None:
    named = tuple((text, {"close": "close_account", "order": "orderPizza"}[label]) for text, label in SUPPORT)
    spelled = (*named, ("close account", "close_account"), ("order Pizza", "orderPizza"))
    digests = [
        weights_digest(runner.runtime.adapt(recipe(tiny, support=support, label_words=words)).content)
        for support, words in ((named, True), (spelled, False), (named, False))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_computed_again_it_has_the_same_bits(runner: JobRunner, tiny: Base) -> None:
    digests = {weights_digest(runner.runtime.adapt(recipe(tiny)).content) for _ in range(3)}
    assert len(digests) == 1
    assert run(runner, recipe(tiny))[1] in digests
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


def test_load_runtime_probes_and_lists_what_it_has(tiny_folder: Path) -> None:
    runtime = load_runtime(WorkerSettings(base_model=str(tiny_folder), precision="float32", threads=torch.get_num_threads()))
    assert len(runtime.by_digest) == 2  # the shipped default belongs to another base model


def test_a_kind_of_task_whose_package_is_gone_fails_its_jobs_with_that_reason(runner: JobRunner, tiny: Base) -> None:
    orphan = recipe(tiny).model_copy(update={"kind": "number-from-text"})
    with pytest.raises(AdaptationError, match=r"tasks of kind 'number-from-text' are not known to this worker"):
        runner.runtime.adapt(orphan)
    assert not runner.runtime.together(orphan)
