"""A decoder as an encoder: last-token pooling, a prompt, and rows that do not depend on their batch."""

from typing import Any, cast

import pytest
import torch

from metatrain.artifacts.baselines import frozen_prototypes, lora_from_zero
from metatrain.deltas import BottleneckConfig, HeadConfig, IA3Config, LoRAConfig, PrefixConfig, PromptConfig
from metatrain.models.base import Base
from metatrain.models.inputs import TextInputs
from metatrain.models.inputs.augment import Augmentation
from metatrain.models.loading import describe_base, load_base
from metatrain.serving.probe import probe
from tests.architectures import ARCHITECTURES
from tests.folders import listed, pooled_by, write
from tests.tiny import DECODERS, save_tiny_model
from tests.worker.jobs import recipe
from worker.runtime import Resident, Runtime

CPU = torch.device("cpu")
PROMPT = "please help me to "
LLAMA = ARCHITECTURES["llama"]
DELTAS: dict[str, Any] = {
    "lora": LoRAConfig(rank=2, alpha=4, targets=LLAMA.projections),
    "bottleneck": BottleneckConfig(rank=3, targets=LLAMA.closing),
    "prefix": PrefixConfig(tokens=3),
    "prompt": PromptConfig(tokens=3),
    "ia3": IA3Config(targets=(*LLAMA.projections, LLAMA.feedforward), feedforward=(LLAMA.feedforward,)),
    "head": HeadConfig(),
}
TEXTS = ["order pizza", "i want to close my account now please", "music", "refund the ticket " * 40, "a"]


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Load a tiny decoder whose folder has last-token pooling, a normalisation and a prompt."""
    folder = save_tiny_model(tmp_path_factory.mktemp(request.param), architecture=request.param)
    pooled_by(folder, pooling="lasttoken")
    listed(folder, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    write(folder, "config_sentence_transformers.json", {"prompts": {"task": PROMPT}, "default_prompt_name": "task"})
    return load_base(str(folder), precision="float32", device=CPU)


def test_the_last_token_is_pooled_behind_the_prompt(decoder: Base) -> None:
    inputs = cast(TextInputs, decoder.inputs)
    ids: list[list[int]] = inputs.tokenizer([PROMPT + text for text in TEXTS])["input_ids"]
    closing = inputs.spec.closing_tokens
    limit = inputs.spec.max_length
    with torch.no_grad():
        for row, features in zip(ids, decoder.features(None, inputs.collate(inputs.encode(TEXTS))), strict=True):
            kept = row if len(row) <= limit else [*row[: limit - closing], *row[len(row) - closing :]]
            states = cast(Any, decoder.model)(input_ids=torch.tensor([kept])).last_hidden_state[0]
            torch.testing.assert_close(features, states[-1] / states[-1].norm(), atol=1e-5, rtol=0)


def test_a_truncated_row_ends_as_the_tokenizer_ends_rows(decoder: Base) -> None:
    closing = {"llama": 0, "qwen3": 1}[cast(Any, decoder.model).config.model_type]
    assert decoder.spec.closing_tokens == closing
    row = decoder.inputs.encode([TEXTS[3]])[0]
    assert row.truncated and len(row) == 64 and (row.ids[-1] == 3) is (closing == 1)


def test_a_row_does_not_depend_on_its_batch(decoder: Base) -> None:
    rows = decoder.inputs.encode(TEXTS)
    together = decoder.features(None, decoder.inputs.collate(rows))
    alone = torch.cat([decoder.features(None, decoder.inputs.collate([row])) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", DELTAS)
def test_every_kind_of_delta_works(decoder: Base, kind: str) -> None:
    probe(decoder, decoder.attach(DELTAS[kind]))


def test_the_baselines_adapt_the_queries_and_values(decoder: Base) -> None:
    described = describe_base(decoder.spec.model, precision="float32", device=CPU)
    for make in (frozen_prototypes, lora_from_zero):
        init = make(decoder)
        assert cast(LoRAConfig, init.delta).targets == ("q_proj", "v_proj") and make(described).digest == init.digest
        probe(decoder, decoder.attach(init.delta))


def test_a_worker_makes_an_adapter_on_a_decoder(decoder: Base) -> None:
    init = lora_from_zero(decoder)
    runtime = Runtime(Resident(decoder, {init.name: init}))
    made = [runtime.adapt(recipe(decoder, initialization_digest=init.digest)) for _ in range(2)]
    assert made[0].content == made[1].content and made[0].support_loss[-1] < made[0].support_loss[0]


@pytest.mark.parametrize("kind", ["token_dropout", "span_mask", "embedding_noise"])
def test_an_augmented_view_has_the_whole_prompt(decoder: Base, kind: Any) -> None:
    inputs = cast(TextInputs, decoder.inputs)
    row = inputs.encode(["i want to close my account now"])[0]
    prompt = inputs.tokenizer([PROMPT], add_special_tokens=False)["input_ids"][0]
    start = list(row.ids).index(prompt[0])
    for seed in range(20):
        view = inputs.view(row, Augmentation(kind=kind, strength=0.5), [seed])
        assert list(view.ids[start : start + len(prompt)]) == prompt
        if view.noise is not None:
            assert view.noise.shape == (len(row), 32) and not view.noise[0].any() and view.noise[-1].any()
    assert any(inputs.view(row, Augmentation(kind="token_dropout", strength=0.5), [seed]).ids != row.ids for seed in range(3))


def test_without_a_padding_token_and_an_unknown_token_rows_are_padded_all_the_same(decoder: Base) -> None:
    inputs = cast(TextInputs, decoder.inputs)
    tokenizer = load_base(decoder.spec.model, precision="float32", device=CPU).inputs.tokenizer  # type: ignore[attr-defined]
    tokenizer.pad_token = tokenizer.unk_token = tokenizer.mask_token = None
    other = TextInputs(tokenizer, inputs.spec, width=32, device=CPU, dtype=torch.float32)
    texts = ["order pizza", "close my account now"]
    expected = decoder.features(None, inputs.collate([*inputs.encode(texts), None]))
    found = decoder.features(None, other.collate([*other.encode(texts), None]))
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
    assert other.mask_token == 0 and torch.isfinite(found).all()
