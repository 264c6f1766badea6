"""A base model split below the delta: features stay the same, and the lower layers run only once."""

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from metatrain.deltas import LoRAConfig
from metatrain.errors import UnsupportedDelta
from metatrain.inner.problem import stack
from metatrain.models.base import Base
from metatrain.models.batch import Batch
from metatrain.models.loading import load_base
from tests.tiny import joined, tasks

UPPER = LoRAConfig(rank=2, alpha=4, targets=("query", "intermediate.dense"), layers=(1,))


def batch(base: Base) -> Batch:
    texts = [text for pairs in tasks(2) for text, _ in pairs]
    return base.inputs.collate(base.inputs.encode(texts), 2)


def test_a_precomputed_batch_gives_the_same_features_and_gradients(tiny: Base) -> None:
    lora = tiny.attach(UPPER)
    assert lora.lowest_layer == 1 and set(lora.sites) == {n for n in lora.sites if ".layer.1." in n}
    whole, precomputed = batch(tiny), tiny.backbone.below(batch(tiny), lora)
    assert all(part.lower is not None for part in precomputed.parts)
    theta = {n: t.requires_grad_() for n, t in lora.initial(torch.Generator().manual_seed(0), b_std=0.2).items()}
    results = []
    for rows in (whole, precomputed):
        features = tiny.features(lora.fold(stack(theta, 2)), rows)
        results.append((features, *torch.autograd.grad(features.square()[:, :5].sum(), list(theta.values()))))
    for left, right in zip(*results, strict=True):
        assert torch.equal(left, right)


def test_the_lower_layers_do_not_run_again(tiny: Base) -> None:
    lora = tiny.attach(UPPER)
    precomputed = tiny.backbone.below(batch(tiny), lora)
    ran: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_args, name=name: ran.append(name))
        for name, module in tiny.model.named_modules()
        if name in ("embeddings", "encoder.layer.0", "encoder.layer.1")
    ]
    tiny.features(None, precomputed)
    for handle in handles:
        handle.remove()
    assert ran == ["encoder.layer.1"] * len(precomputed.parts)


def test_a_delta_that_begins_at_the_bottom_leaves_the_batch_unchanged(tiny: Base) -> None:
    rows = batch(tiny)
    assert tiny.backbone.below(rows, tiny.attach(LoRAConfig(rank=2, alpha=4))) is rows


def test_a_model_with_embeddings_and_layers_in_one_child_runs_whole(tiny: Base) -> None:
    class Wrapped(nn.Module):
        """A model that cannot be split, because one child module contains the embeddings and the layers."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.config = inner, inner.config

        def get_input_embeddings(self) -> Any:
            return self.inner.get_input_embeddings()  # type: ignore[operator]

        def forward(self, **inputs: Any) -> Any:
            return self.inner(**inputs)

    wrapped = joined(tiny, Wrapped(tiny.model), attention="sdpa")
    rows = batch(wrapped)
    assert wrapped.backbone.below(rows, wrapped.attach(UPPER)) is rows


def test_a_model_whose_parts_give_other_features_runs_whole(tiny: Base) -> None:
    class Counting(nn.Module):
        """A model that adds the layer's index to each layer's output.

        If the upper layers run alone, the index begins at 0 again, so the features differ.
        """

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.config, self.embeddings = inner.config, inner.embeddings
            self.layer = nn.ModuleList(inner.encoder.layer)  # type: ignore[union-attr, arg-type]

        def get_input_embeddings(self) -> Any:
            return cast(Any, self.embeddings).word_embeddings

        def forward(self, attention_mask: Any = None, **inputs: Any) -> Any:
            hidden = cast(Any, self.embeddings)(**inputs)
            mask = (1 - attention_mask[:, None, None, :].to(hidden.dtype)) * -1e9
            for number, layer in enumerate(self.layer):
                hidden = layer(hidden, mask)
                hidden = (hidden[0] if isinstance(hidden, tuple) else hidden) + 0.1 * number
            return SimpleNamespace(last_hidden_state=hidden)

    counting = joined(tiny, Counting(tiny.model), attention="sdpa")
    rows = batch(counting)
    assert torch.isfinite(counting.features(None, rows)).all()
    assert counting.backbone.below(rows, counting.attach(LoRAConfig(rank=2, alpha=4, targets=("query",), layers=(1,)))) is rows


def test_several_threads_split_one_model(tiny: Base) -> None:
    base = joined(tiny, attention="sdpa")
    lora, rows = base.attach(UPPER), batch(base)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: base.features(None, base.backbone.below(rows, lora)), range(8)))
    assert all(torch.equal(features, results[0]) for features in results)


def test_a_delta_acts_once_on_a_model_with_several_bases(tiny_folder: Path) -> None:
    first = load_base(str(tiny_folder), precision="float32", device=torch.device("cpu"))
    lora = first.attach(UPPER)
    delta = lora.fold(stack(lora.initial(torch.Generator().manual_seed(0), b_std=0.3), 1))
    before = first.features(delta, batch(first))
    for model in (first.model, copy.deepcopy(first.model)):
        second = joined(first, model, attention="sdpa")
        second.attach(UPPER)
        assert torch.equal(second.features(delta, batch(second)), before)
    assert torch.equal(first.features(delta, batch(first)), before)


def test_an_unknown_layer_is_named(tiny: Base) -> None:
    with pytest.raises(UnsupportedDelta, match=r"delta\.layers: BertModel has no layer 9 with these targets"):
        tiny.attach(LoRAConfig(layers=(1, 9)))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_minilm_is_split_exactly_to_the_last_bit(minilm: Base, precision: torch.dtype) -> None:
    base = minilm
    if precision == torch.bfloat16:
        from metatrain.models.loading import load_base

        base = load_base(precision="bfloat16", device=torch.device("cpu"))
        assert base.attention == "eager"
    lora = base.attach(LoRAConfig(layers=(3, 4, 5)))
    rows = base.inputs.collate(
        base.inputs.encode(["where is my card", "one", "a longer row of words that pads the other two rows out a good deal"])
    )
    precomputed = base.backbone.below(rows, lora)
    assert all(part.lower is not None for part in precomputed.parts)
    assert torch.equal(base.features(None, rows), base.features(None, precomputed))
