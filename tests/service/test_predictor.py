"""The predictor with a real weight store: queue, memory, errors, and answers in shared batches."""

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import redis
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metatrain.artifacts.adapter import Adapter, AdapterMetadata, adapter_to_bytes
from metatrain.artifacts.baselines import frozen_prototypes, lora_from_zero
from metatrain.artifacts.initialization import Initialization
from metatrain.artifacts.stored_initialization import initialization_to_bytes
from metatrain.deltas import DeltaConfig, LoRAConfig
from metatrain.errors import ArtifactError, NonFinite
from metatrain.models.base import Base
from metatrain.models.loading import load_base
from service.errors import Overloaded
from service.predicting import wire
from service.predicting.interface import Answer, WeightsKey
from service.predicting.predictor import InProcessPredictor
from service.settings import ServiceSettings
from tests.conftest import RedisServer
from worker.errors import WeightsCorrupt, WeightsMissing
from worker.ledger.weights_cache import WeightStore, weights_digest

DAY = 86_400_000


@pytest.fixture
def store(redis_server: RedisServer) -> WeightStore:
    return WeightStore(redis.Redis.from_url(redis_server.url))


@pytest.fixture(scope="module")
def catalog(tiny: Base) -> dict[str, Initialization]:
    lora = lora_from_zero(tiny)
    moved = {name: p + 0.2 for name, p in tiny.parameters(["encoder.layer.1.output.*"]).items()}
    inits = [lora, frozen_prototypes(tiny), replace(lora, name="moved", base_update=moved)]
    return {init.name: init for init in inits}


@pytest.fixture
def predictor(tiny: Base, catalog: dict[str, Initialization], store: WeightStore) -> Iterator[InProcessPredictor]:
    predictor = InProcessPredictor(tiny, catalog, store, ServiceSettings(bank_mb=1, batch_rows=8, queue_rows=400))
    yield predictor
    predictor.close()
    assert not predictor.alive()


def put(base: Base, store: WeightStore, init: Initialization, seed: int, config: DeltaConfig | None = None) -> WeightsKey:
    """Store an adapter with random weights and with labels that contain `seed`. Return its weights key."""
    metadata = AdapterMetadata(
        initialization_digest=init.digest,
        base_weights_sha256=base.spec.weights_sha256,
        delta=config or init.delta,
        scale=8.0,
        labels=tuple(f"{seed} {c}" for c in range(2 + seed % 3)),
    )
    generator = torch.Generator().manual_seed(seed)
    theta = base.attach(metadata.delta).initial(generator, b_std=0.3)
    head = torch.nn.functional.normalize(torch.randn(len(metadata.labels), base.hidden_size, generator=generator), dim=-1)
    content = adapter_to_bytes(Adapter(metadata, theta, {"head.weight": head, "head.bias": torch.zeros(len(metadata.labels))}))
    store.put("t", f"a{seed}", 7, content, DAY)
    return WeightsKey("t", f"a{seed}", 7, weights_digest(content))


def probabilities(predictor: InProcessPredictor, weights: WeightsKey, texts: list[str]) -> list[list[float]]:
    return predictor.submit(weights, texts).result(20).outputs


def test_an_adapter_that_does_not_load_fails_alone_and_the_next_call_is_answered(
    tiny: Base, catalog: dict[str, Initialization], store: WeightStore, predictor: InProcessPredictor
) -> None:
    init = next(iter(catalog.values()))
    valid = put(tiny, store, init, 0)
    failing: list[tuple[WeightsKey, type[Exception]]] = [
        (put(tiny, store, replace(init, scale=3.0), 1), ArtifactError),  # an initialization that the predictor does not have
        (put(tiny, store, init, 2, LoRAConfig(rank=64)), ArtifactError),  # a rank that the bank was not built for
        (replace(valid, adapter_id="a9"), WeightsMissing),
        (replace(valid, digest="0" * 64), WeightsCorrupt),
    ]
    answers = [(predictor.submit(weights, ["order"]), error) for weights, error in failing]
    for future, error in answers:
        with pytest.raises(error):
            future.result(20)
    valid = put(tiny, store, init, 0)  # again: the store deletes weights that do not match the expected digest
    answer = predictor.submit(valid, ["order pizza"] * 20).result(20)
    assert answer.labels == ("0 0", "0 1") and len(answer.outputs) == 20
    assert answer.seconds["forward"] > 0 and predictor.alive()


def test_an_adapter_of_a_stored_initialization_gets_room_in_the_bank(
    tiny: Base, catalog: dict[str, Initialization], store: WeightStore
) -> None:
    """Predict with an adapter whose initialization was not loaded at the start.

    It has a larger rank than the loaded ones, and a base update.
    """
    update = {name: p - 0.3 for name, p in tiny.parameters(["encoder.layer.1.output.*"]).items()}
    config = LoRAConfig(rank=12)
    theta = tiny.attach(config).initial(torch.Generator().manual_seed(0))
    larger = replace(lora_from_zero(tiny), name="larger", delta=config, theta=theta, base_update=update)
    stored = {larger.digest: initialization_to_bytes(larger)}
    settings = ServiceSettings(bank_mb=1, batch_rows=8, queue_rows=400)
    predictor = InProcessPredictor(tiny, catalog, store, settings, stored=stored.get)
    loaded = InProcessPredictor(tiny, {**catalog, "larger": larger}, store, settings)
    try:
        known, unknown = put(tiny, store, next(iter(catalog.values())), 0), put(tiny, store, larger, 1)
        slots = predictor.gauges()["bank_slots"]
        texts = ["order pizza", "close my account"]
        for weights in (known, unknown, known):
            expected = torch.tensor(probabilities(loaded, weights, texts))
            torch.testing.assert_close(torch.tensor(probabilities(predictor, weights, texts)), expected)
        together = [predictor.submit(weights, texts) for weights in (known, unknown)]
        assert [answer.result(20).labels for answer in together] == [("0 0", "0 1"), ("1 0", "1 1", "1 2")]
        assert predictor.gauges()["bank_slots"] < slots
    finally:
        predictor.close()
        loaded.close()


def test_a_long_command_between_batches_does_not_block_new_calls(
    tiny: Base, catalog: dict[str, Initialization], store: WeightStore, predictor: InProcessPredictor
) -> None:
    """Submit a call, as the event loop does, while the predictor's thread is busy with its bank."""
    weights = put(tiny, store, next(iter(catalog.values())), 0)
    started, release = threading.Event(), threading.Event()

    def wait() -> None:
        started.set()
        release.wait(20)

    predictor._command(wait)
    assert started.wait(20)
    began = time.monotonic()
    answer = predictor.submit(weights, ["order pizza"])
    assert time.monotonic() - began < 5 and not answer.done()
    release.set()
    assert answer.result(20).labels == ("0 0", "0 1")


def test_a_forgotten_adapter_is_not_answered_from_memory(
    tiny: Base, catalog: dict[str, Initialization], store: WeightStore, predictor: InProcessPredictor
) -> None:
    weights = put(tiny, store, next(iter(catalog.values())), 0)
    first = probabilities(predictor, weights, ["order pizza"])
    store.remove(weights.tenant, weights.adapter_id, weights.fence)
    assert probabilities(predictor, weights, ["order pizza"]) == first  # answered from the device
    predictor.forget(weights.tenant, weights.digest)
    with pytest.raises(WeightsMissing):
        predictor.submit(weights, ["order pizza"]).result(20)
    assert (predictor.gauges()["bank_adapters"], predictor.gauges()["shelf_adapters"]) == (0, 0)


def test_an_adapter_evicted_from_the_device_is_loaded_from_the_shelf(
    tiny: Base, catalog: dict[str, Initialization], store: WeightStore
) -> None:
    """Empty the store, so that only the shelf, a cache in main memory, still contains the weights.

    Without a shelf, prediction fails because the weights are missing.
    """
    init = next(iter(catalog.values()))
    for shelf_mb in (64, 0):
        predictor = InProcessPredictor(tiny, catalog, store, ServiceSettings(bank_mb=0.05, shelf_mb=shelf_mb))
        slots = int(predictor.gauges()["bank_slots"])
        adapters = [put(tiny, store, init, seed) for seed in range(slots + 2)]
        first = [probabilities(predictor, each, ["order pizza", "play"]) for each in adapters]
        for each in adapters:
            store.remove(each.tenant, each.adapter_id, each.fence)
        assert predictor.gauges()["bank_adapters"] == slots
        if shelf_mb:
            assert [probabilities(predictor, each, ["order pizza", "play"]) for each in adapters] == first
        else:
            with pytest.raises(WeightsMissing):
                predictor.submit(adapters[0], ["order"]).result(20)
        predictor.close()


def test_cancelled_calls_leave_the_queue_and_a_full_queue_refuses_calls(
    tiny: Base, catalog: dict[str, Initialization], store: WeightStore, predictor: InProcessPredictor
) -> None:
    weights = put(tiny, store, next(iter(catalog.values())), 0)
    probabilities(predictor, weights, ["order"])
    waiting = [predictor.submit(weights, ["order pizza"] * 100) for _ in range(4)]
    with pytest.raises(Overloaded) as refused:
        predictor.submit(weights, ["order"] * 350)
    assert refused.value.status == 429 and 1 <= int(refused.value.headers["Retry-After"]) <= 60
    assert "QUEUE_ROWS is 400" in refused.value.detail
    cancelled = [future.cancel() for future in waiting[1:]]
    assert any(cancelled) and predictor.gauges()["waiting_inputs"] <= 400 - 100 * sum(cancelled)
    for future, was_cancelled in zip(waiting[1:], cancelled, strict=True):
        if was_cancelled:
            with pytest.raises(CancelledError):
                future.result(0)
    assert len(waiting[0].result(20).outputs) == 100
    assert len(predictor.submit(weights, ["order"] * 401).result(20).outputs) == 401  # an empty queue accepts a call of any size
    deadline = time.monotonic() + 10
    while predictor.gauges()["waiting_inputs"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert predictor.gauges()["waiting_inputs"] == 0


def test_a_tenant_may_use_half_of_the_queue_while_others_wait(
    tiny: Base, catalog: dict[str, Initialization], store: WeightStore, predictor: InProcessPredictor
) -> None:
    """Use a queue of 400 rows. A call of 150 rows needs many batches of 8, so it stays queued for a while."""
    weights = put(tiny, store, next(iter(catalog.values())), 0)
    content = store.get(weights.tenant, weights.adapter_id, weights.fence, weights.digest)
    store.put("other", weights.adapter_id, weights.fence, content, DAY)
    other = replace(weights, tenant="other")
    answers = [predictor.submit(weights, ["order pizza"] * 150), predictor.submit(other, ["order pizza"] * 100)]
    with pytest.raises(Overloaded, match="150 inputs of this tenant are waiting") as refused:
        predictor.submit(weights, ["order"] * 60)
    assert refused.value.status == 429 and int(refused.value.headers["Retry-After"]) >= 1
    answers += [predictor.submit(weights, ["order"] * 50), predictor.submit(other, ["order"] * 80)]
    assert [len(answer.result(20).outputs) for answer in answers] == [150, 100, 50, 80]
    answers = [predictor.submit(weights, ["order pizza"] * 150) for _ in range(2)]  # more than half, as no other tenant waits
    assert [len(answer.result(20).outputs) for answer in answers] == [150, 150]


def test_a_tenant_finds_room_in_a_queue_that_another_has_filled(
    tiny: Base, catalog: dict[str, Initialization], store: WeightStore, predictor: InProcessPredictor
) -> None:
    weights = put(tiny, store, next(iter(catalog.values())), 0)
    content = store.get(weights.tenant, weights.adapter_id, weights.fence, weights.digest)
    store.put("quiet", weights.adapter_id, weights.fence, content, DAY)
    filling = [predictor.submit(weights, ["order pizza"] * 200) for _ in range(2)]
    quiet = predictor.submit(replace(weights, tenant="quiet"), ["order"])
    with pytest.raises(Overloaded):
        predictor.submit(weights, ["order"])
    assert len(quiet.result(20).outputs) == 1 and not all(future.done() for future in filling)  # it did not wait for the others
    assert [len(future.result(20).outputs) for future in filling] == [200, 200]


def test_what_could_not_be_answered_in_time_is_refused_at_once(
    tiny: Base, catalog: dict[str, Initialization], store: WeightStore
) -> None:
    settings = ServiceSettings(bank_mb=1, batch_rows=8, predict_seconds=0.05)
    predictor = InProcessPredictor(tiny, catalog, store, settings)
    weights = put(tiny, store, next(iter(catalog.values())), 0)
    for _ in range(6):  # so that the pace is known
        probabilities(predictor, weights, ["order"])
    first = predictor.submit(weights, ["order pizza " * 20] * 400)  # an idle predictor accepts a call of any size
    while not predictor._batcher.waiting_tokens:  # until the call is tokenized
        time.sleep(0.001)
    with pytest.raises(Overloaded, match=r"PREDICT_SECONDS is 0\.05") as refused:
        predictor.submit(weights, ["play"]).result(20)
    assert int(refused.value.headers["Retry-After"]) >= 1
    assert len(first.result(20).outputs) == 400 and len(predictor.submit(weights, ["play"]).result(20).outputs) == 1
    predictor.close()


Calls = st.lists(
    st.tuples(st.integers(0, 11), st.lists(st.sampled_from(["order pizza", "play music now", "a", "the late train"]), min_size=1)),
    min_size=1,
    max_size=10,
)


def test_concurrent_calls_get_the_same_answers_as_single_calls(
    tiny: Base, catalog: dict[str, Initialization], store: WeightStore
) -> None:
    """Use more adapters than fit on the device, from three initializations, one with a base update.

    Meanwhile a thread repeatedly drops one adapter from device and memory.
    """
    inits = list(catalog.values())
    adapters = [put(tiny, store, inits[seed % len(inits)], seed) for seed in range(12)]
    predictor = InProcessPredictor(
        tiny, catalog, store, ServiceSettings(bank_mb=0.05, shelf_mb=0.05, batch_rows=5, batch_tokens=20)
    )
    assert 1 < predictor.gauges()["bank_slots"] < 12
    alone: dict[tuple[int, str], list[float]] = {}
    stop = threading.Event()

    def forget_repeatedly() -> None:
        while not stop.wait(0.01):
            predictor.forget("t", adapters[3].digest)

    thread = threading.Thread(target=forget_repeatedly)
    thread.start()

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(Calls)
    def check(calls: list[tuple[int, list[str]]]) -> None:
        for seed, texts in calls:
            for text in texts:
                if (seed, text) not in alone:
                    alone[seed, text] = probabilities(predictor, adapters[seed], [text])[0]
        futures: list[Future[Answer]] = [predictor.submit(adapters[seed], texts) for seed, texts in calls]
        for (seed, texts), future in zip(calls, futures, strict=True):
            answer = future.result(20)
            assert answer.labels == tuple(f"{seed} {c}" for c in range(2 + seed % 3))
            for text, found in zip(texts, answer.outputs, strict=True):
                torch.testing.assert_close(torch.tensor(found), torch.tensor(alone[seed, text]), rtol=0, atol=1e-5)

    try:
        check()
    finally:
        stop.set()
        thread.join()
        predictor.close()


def test_an_input_without_finite_features_fails_its_own_call_only(
    tiny_folder: Path, catalog: dict[str, Initialization], store: WeightStore
) -> None:
    """Predict in one batch with a base model that has NaN in the embedding of one word."""
    base = load_base(str(tiny_folder), precision="float32", device=torch.device("cpu"))
    token = base.inputs.encode(["pizza"])[0].ids[1]
    cast(Any, base.model).get_input_embeddings().weight[token] = float("nan")
    predictor = InProcessPredictor(base, catalog, store, ServiceSettings(bank_mb=1, batch_rows=8, batch_wait_ms=200))
    try:
        weights = [put(base, store, next(iter(catalog.values())), seed) for seed in (0, 1)]
        damaged = predictor.submit(weights[0], ["close my account", "order pizza"])
        sound = [predictor.submit(key, ["close my account"]) for key in weights]
        with pytest.raises(NonFinite, match=r"^input 1: its features are not finite in float32$") as error:
            damaged.result(20)
        assert str(wire.error_of(wire.error(3, error.value))) == str(error.value)
        assert all(math.isfinite(p) for answer in sound for p in answer.result(20).outputs[0])
    finally:
        predictor.close()
