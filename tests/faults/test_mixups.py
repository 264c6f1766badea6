"""A row is never answered with another row's adapter.

The tests use canaries: adapters of every delta kind, each with its own labels and probabilities. Many clients use the canaries at
the same time, while another thread deletes them and stores them again, and the predictor evicts them from device and memory.
"""

import random
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis
import torch

from metatrain.artifacts.adapter import Adapter, AdapterMetadata, adapter_to_bytes
from metatrain.artifacts.baselines import frozen_prototypes, lora_from_zero
from metatrain.artifacts.initialization import Initialization
from metatrain.deltas import BottleneckConfig, DeltaConfig, HeadConfig, IA3Config, LoRAConfig, PrefixConfig, PromptConfig
from metatrain.inner.problem import stack
from metatrain.models.base import Base
from service.predicting.interface import WeightsKey
from service.predicting.predictor import InProcessPredictor
from service.settings import ServiceSettings
from tests.conftest import RedisServer
from worker.errors import WeightsMissing
from worker.ledger.weights_cache import WeightStore, weights_digest

KINDS: list[DeltaConfig] = [
    LoRAConfig(rank=2, alpha=4),
    LoRAConfig(rank=5, alpha=5, targets=("query", "intermediate.dense")),
    BottleneckConfig(rank=3),
    IA3Config(),
    PrefixConfig(tokens=3),
    PromptConfig(tokens=2),
    PromptConfig(tokens=4),
    HeadConfig(),
]
TEXTS = ["order pizza", "play music now please", "a", "the late train to the rain ticket help me sign in today"]
CANARIES, CLIENTS = 48, 12


class Canaries:
    """The canary adapters in a weight store, and the probabilities that each must predict for each text.

    The expected probabilities are computed for one text and one adapter at a time, without a predictor.
    """

    def __init__(self, base: Base, store: WeightStore) -> None:
        self.store, self.contents, self.expected = store, dict[WeightsKey, bytes](), dict[tuple[int, str], torch.Tensor]()
        self.keys: list[WeightsKey] = []
        inits = list(initializations(base).values())
        for number in range(CANARIES):
            init = inits[number % len(inits)]
            kind = base.attach(init.delta)
            labels = tuple(f"canary {number} {c}" for c in range(2 + number % 4))
            metadata = AdapterMetadata(
                initialization_digest=init.digest,
                base_weights_sha256=base.spec.weights_sha256,
                delta=init.delta,
                scale=6.0,
                labels=labels,
            )
            generator = torch.Generator().manual_seed(number)
            theta = kind.initial(generator, b_std=0.3)
            head = torch.nn.functional.normalize(torch.randn(len(labels), base.hidden_size, generator=generator), dim=-1)
            content = adapter_to_bytes(Adapter(metadata, theta, {"head.weight": head, "head.bias": torch.zeros(len(labels))}))
            key = WeightsKey(f"t{number % 3}", f"a{number}", 7, weights_digest(content))
            self.keys.append(key)
            self.contents[key] = content
            for text in TEXTS:
                with torch.no_grad():
                    batch = base.inputs.collate(base.inputs.encode([text]))
                    features = base.features(kind.fold(stack(theta, 1)), batch, updated=init.base_update)
                self.expected[number, text] = torch.softmax(6.0 * features @ head.T, -1)[0]
            self.put(key)

    def put(self, key: WeightsKey) -> None:
        self.store.put(key.tenant, key.adapter_id, key.fence, self.contents[key], 86_400_000)


def initializations(base: Base) -> dict[str, Initialization]:
    """Return an initialization for each delta kind, and one that also updates base parameters."""
    plain = [
        replace(frozen_prototypes(base) if delta.kind == "head" else lora_from_zero(base), name=f"{i}", delta=delta)
        for i, delta in enumerate(KINDS)
    ]
    update = {name: p + 0.2 for name, p in base.parameters(["encoder.layer.1.output.*"]).items()}
    return {init.name: init for init in [*plain, replace(plain[0], name="moved", base_update=update)]}


@pytest.fixture
def canaries(tiny: Base, redis_server: RedisServer) -> Iterator[Canaries]:
    client = redis.Redis.from_url(redis_server.url)
    yield Canaries(tiny, WeightStore(client))
    client.close()


@pytest.mark.parametrize("rows", [5_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_no_row_is_answered_by_anothers_adapter(tiny: Base, canaries: Canaries, rows: int) -> None:
    settings = ServiceSettings(bank_mb=0.1, shelf_mb=0.1, batch_rows=24, batch_tokens=200)
    predictor = InProcessPredictor(tiny, initializations(tiny), canaries.store, settings)
    assert 2 <= predictor.gauges()["bank_slots"] < CANARIES / 2
    answered, wrong, missing, problems = [0] * CLIENTS, [0] * CLIENTS, [0] * CLIENTS, list[BaseException]()
    stop = threading.Event()

    def client(me: int) -> None:
        draw = random.Random(me)
        try:
            while answered[me] < rows / CLIENTS:
                number = draw.randrange(CANARIES)
                texts = draw.choices(TEXTS, k=draw.randint(1, 9))
                try:
                    answer = predictor.submit(canaries.keys[number], texts).result(60)
                except WeightsMissing:
                    missing[me] += 1
                    continue
                for text, probabilities in zip(texts, answer.outputs, strict=True):
                    answered[me] += 1
                    expected = canaries.expected[number, text]
                    labels_match = all(label.startswith(f"canary {number} ") for label in answer.labels)
                    wrong[me] += not (labels_match and torch.allclose(torch.tensor(probabilities), expected, rtol=0, atol=1e-4))
        except BaseException as error:
            problems.append(error)

    def remove_and_restore() -> None:
        draw = random.Random(99)
        while not stop.wait(0.002):
            key = draw.choice(canaries.keys)
            if draw.random() < 0.5:
                canaries.store.remove(key.tenant, key.adapter_id, key.fence)
                predictor.forget(key.tenant, key.digest)
            else:
                canaries.put(key)

    clients = [threading.Thread(target=client, args=(me,)) for me in range(CLIENTS)]
    remover = threading.Thread(target=remove_and_restore)
    for thread in [*clients, remover]:
        thread.start()
    for thread in clients:
        thread.join()
    stop.set()
    remover.join()
    predictor.close()
    assert not problems and sum(wrong) == 0
    assert sum(answered) >= rows and sum(missing) > 0  # some requests must have found their adapter removed
