"""Every delta kind on many architectures: it equals plain code and stock PEFT, or is refused."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest
import torch
from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import AttentionInterface

from metatrain.deltas import (
    BottleneckConfig,
    DeltaKind,
    HeadConfig,
    IA3Config,
    LoRAConfig,
    PrefixConfig,
    PromptConfig,
    build,
    delta_scope,
)
from metatrain.deltas.sites import find_sites
from metatrain.deltas.virtual import prepend_prompt, real_token_mask
from metatrain.errors import UnsupportedDelta
from tests.architectures import ARCHITECTURES, Architecture, collate, draw_rows
from tests.oracles.plain_deltas import last_hidden_state

KINDS = ("lora", "bottleneck", "ia3", "prefix", "prompt", "head")
REFUSED = {(kind, name) for kind in ("prefix", "prompt") for name in ("vit", "dinov2", "efficientnet")}
IN_PEFT = {("prefix", "bert"), ("prefix", "gpt2"), *((kind, name) for kind in ("lora", "ia3", "prompt") for name in ARCHITECTURES)}
ATTENTIONS = ("sdpa", "eager")
WORKING = [(kind, name) for kind in KINDS for name in ARCHITECTURES if (kind, name) not in REFUSED]
every_supported_pair = pytest.mark.parametrize(("kind", "name"), WORKING, ids=[f"{kind}-{name}" for kind, name in WORKING])
either_attention = pytest.mark.parametrize("attention", ATTENTIONS)


def config_for(kind: str, architecture: Architecture) -> Any:
    return {
        "lora": LoRAConfig(rank=3, alpha=5, targets=(*architecture.projections, architecture.feedforward)),
        "bottleneck": BottleneckConfig(rank=3, targets=architecture.closing),
        "prefix": PrefixConfig(tokens=3),
        "prompt": PromptConfig(tokens=3),
        "ia3": IA3Config(targets=(*architecture.projections, architecture.feedforward), feedforward=(architecture.feedforward,)),
        "head": HeadConfig(),
    }[kind]


class Hooked:
    """A model with one attached delta kind, and four random θ (parameter sets) for that kind."""

    def __init__(self, name: str, kind: str, attention: str) -> None:
        self.architecture = ARCHITECTURES[name]
        self.model = self.architecture.make(attention)
        self.kind: DeltaKind = build(config_for(kind, self.architecture), self.model)
        self.kind.attach(self.kind.sites)
        generator = torch.Generator().manual_seed(1)
        self.thetas = [self.kind.initial(generator, b_std=0.3) for _ in range(4)]

    @torch.no_grad()
    def states(self, delta: Mapping[str, Tensor] | None, rows: Sequence[Tensor], **decoding: Any) -> list[Tensor]:
        """Return each row's last hidden states: [L, D] for a text's own tokens, or all states of an image.

        `delta` is a folded delta, as `folded` returns it.
        """
        inputs = collate(self.architecture, list(rows))
        with delta_scope(delta):
            arguments, length = prepend_prompt(delta, inputs, lambda ids: cast(Any, self.model).get_input_embeddings()(ids))
            states = self.model(**arguments, **decoding).last_hidden_state[:, length:]
        return [found[: len(row)] if self.architecture.text else found for found, row in zip(states, rows, strict=True)]

    def folded(self, thetas: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return self.kind.fold({name: torch.stack([theta[name] for theta in thetas]) for name in self.kind.shapes})

    def alone(self, row: Tensor, theta: Mapping[str, Tensor]) -> Tensor:
        return self.states(self.folded([theta]), [row])[0]


@torch.no_grad()
def in_stock_peft(hooked: Hooked, theta: Mapping[str, Tensor], row: Tensor, attention: str) -> Tensor:
    """Return the last hidden states of one row in stock PEFT, into which θ is loaded."""
    files = hooked.kind.peft
    assert files is not None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*base_model_name_or_path")
        config = cast(Any, PeftConfig).from_peft_type(**{**files.config(""), "inference_mode": False})
        stock = cast(Any, get_peft_model(cast(Any, hooked.architecture.make(attention)), config)).eval()
    set_peft_model_state_dict(stock, files.to_peft(theta))
    # PEFT's own forward is needed for virtual tokens, but it accepts only texts.
    forward = stock if hooked.kind.counts else stock.base_model.model
    states: Tensor = forward(**collate(hooked.architecture, [row])).last_hidden_state[0]
    return states[-len(row) :] if hooked.architecture.text else states


@either_attention
@every_supported_pair
def test_each_row_of_a_mixed_batch_equals_the_row_alone_a_plain_computation_and_peft(kind: str, name: str, attention: str) -> None:
    hooked = Hooked(name, kind, attention)
    rows = draw_rows(hooked.architecture, 4)
    mixed = hooked.states(hooked.folded(hooked.thetas), rows)
    bare = hooked.states(None, rows)
    for theta, row, found, without in zip(hooked.thetas, rows, mixed, bare, strict=True):
        torch.testing.assert_close(found, hooked.alone(row, theta), rtol=0, atol=1e-5)
        inputs = collate(hooked.architecture, [row])
        with torch.no_grad():
            plain = last_hidden_state(hooked.architecture.make(attention), hooked.kind, theta, inputs)[0]
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)
        if hooked.kind.peft is not None:
            torch.testing.assert_close(found, in_stock_peft(hooked, theta, row, attention), rtol=0, atol=1e-5)
        assert kind == "head" or (found - without).abs().max() > 1e-2
    assert (hooked.kind.peft is not None) == ((kind, name) in IN_PEFT)


@every_supported_pair
def test_groups_of_rows_equal_each_group_alone(kind: str, name: str) -> None:
    hooked = Hooked(name, kind, "sdpa")
    rows, delta = draw_rows(hooked.architecture, 6), hooked.folded(hooked.thetas[:2])
    together = hooked.states(delta, rows)
    for group, group_rows in enumerate((rows[:3], rows[3:])):
        group_delta = {leaf: value[group : group + 1] for leaf, value in delta.items()}
        for found, alone in zip(together[3 * group : 3 * group + 3], hooked.states(group_delta, group_rows), strict=True):
            torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)


@every_supported_pair
def test_the_round_trip_through_peft_names_keeps_every_bit(kind: str, name: str) -> None:
    hooked = Hooked(name, kind, "sdpa")
    files, theta = hooked.kind.peft, hooked.thetas[0]
    if files is None:
        return
    peft_tensors = files.to_peft(theta)
    assert {leaf: tuple(value.shape) for leaf, value in peft_tensors.items()} == files.shapes
    back = files.from_peft(peft_tensors)
    assert back.keys() == theta.keys() and all(torch.equal(back[leaf], value) for leaf, value in theta.items())


@either_attention
@pytest.mark.parametrize("max_length", [3, 9])
@pytest.mark.parametrize("name", [name for name, architecture in ARCHITECTURES.items() if architecture.text])
@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_rows_with_unequal_numbers_of_virtual_tokens_equal_each_row_alone(
    kind: str, name: str, max_length: int, attention: str
) -> None:
    """Cut rows to `max_length`. At length 3 all rows are equally long, so attention gets no mask."""
    hooked = Hooked(name, kind, attention)
    rows, full = [row[:max_length] for row in draw_rows(hooked.architecture, 4)], hooked.folded(hooked.thetas)
    counts = torch.tensor([1, 3, 0, 2])
    padded = {leaf: value * real_token_mask(counts, 3).unsqueeze(-1) for leaf, value in full.items()}
    mixed = hooked.states({**padded, **dict.fromkeys(hooked.kind.counts, counts.float())}, rows)
    for i, count in enumerate(counts.tolist()):
        row_delta = {leaf: value[i : i + 1, 3 - count :] for leaf, value in full.items()} if count else None
        torch.testing.assert_close(mixed[i], hooked.states(row_delta, [rows[i]])[0], rtol=0, atol=1e-5)


@either_attention
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("kind", ["lora", "bottleneck", "ia3", "prefix"])
def test_decoding_with_a_cache_equals_the_whole_forward_pass(kind: str, name: str, attention: str) -> None:
    """Decode two tokens, then one at a time. The prefix is not stored in the cache."""
    hooked = Hooked(name, kind, attention)
    row, delta = draw_rows(hooked.architecture, 4)[3], hooked.folded(hooked.thetas[:1])
    whole = hooked.states(delta, [row])[0]
    with torch.no_grad(), delta_scope(delta):
        output = hooked.model(input_ids=row[None, :2], use_cache=True)
        parts = [output.last_hidden_state[0]]
        for token in row[2:]:
            output = hooked.model(input_ids=token.view(1, 1), past_key_values=output.past_key_values, use_cache=True)
            parts.append(output.last_hidden_state[0])
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("module_is_causal", [True, False])
@pytest.mark.parametrize("call_is_causal", [True, False, None])
def test_fused_attention_with_a_prefix_is_causal_if_the_call_or_the_module_says_so(
    module_is_causal: bool, call_is_causal: bool | None
) -> None:
    """Call attention without a mask, as models do if no row is padded."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 2, 4, 8, generator=generator) for _ in range(3))
    attend = cast(Any, AttentionInterface)()["quickstudy_sdpa"]
    module: Any = nn.Module()
    module.prefix_site, module.is_causal = "site", module_is_causal
    delta = {f"site.prefix_{part}": torch.randn(2, 3, 16, generator=generator) for part in ("key", "value")}
    causal = module_is_causal if call_is_causal is None else call_is_causal
    mask = torch.ones(1, 1, 4, 4).tril().bool() if causal else torch.ones(1, 1, 4, 4).bool()
    with delta_scope(delta):
        implied = attend(module, query, key, value, None, is_causal=call_is_causal)[0]
        explicit = attend(module, query, key, value, mask)[0]
    torch.testing.assert_close(implied, explicit)


@either_attention
@pytest.mark.parametrize(("kind", "name"), sorted(REFUSED))
def test_a_kind_for_texts_is_refused_on_a_model_of_images(kind: str, name: str, attention: str) -> None:
    model = ARCHITECTURES[name].make(attention)
    before = cast(Any, model).config._attn_implementation
    with pytest.raises(UnsupportedDelta, match=rf"delta\.kind: {kind} needs a model that takes input_ids, .* takes pixel_values"):
        build(config_for(kind, ARCHITECTURES[name]), model)
    assert cast(Any, model).config._attn_implementation == before


@either_attention
@pytest.mark.parametrize("layers", [(7,), (0, 2), (99, 1)])
def test_a_refused_prefix_leaves_the_attention_as_it_was(layers: tuple[int, ...], attention: str) -> None:
    model = ARCHITECTURES["bert"].make(attention)
    with pytest.raises(UnsupportedDelta, match="has no attention in layer"):
        build(PrefixConfig(layers=layers), model)
    assert cast(Any, model).config._attn_implementation == attention
    build(PrefixConfig(), model)
    with pytest.raises(UnsupportedDelta, match="has no attention in layer"):
        build(PrefixConfig(layers=layers), model)
    assert cast(Any, model).config._attn_implementation == f"quickstudy_{attention}"  # the first prefix still acts


@pytest.mark.parametrize("lazy", [nn.LazyLinear(4), nn.LazyConv2d(4, 1)])
def test_a_layer_whose_sizes_are_not_known_yet_is_no_site(lazy: nn.Module) -> None:
    model = nn.ModuleDict({"first": lazy, "second": nn.Linear(4, 4)})
    assert list(find_sites(model, ("second",), None)) == ["second"]
    with pytest.raises(UnsupportedDelta, match=rf"matched {type(lazy).__name__}"):
        find_sites(model, ("first",), None)
    lazy(torch.zeros(1, 3, 5, 3))
    assert find_sites(model, ("first",), None)["first"].in_features == 3


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_unknown_targets_and_layers_are_refused(name: str) -> None:
    architecture = ARCHITECTURES[name]
    model = architecture.make("sdpa")
    for config in (
        LoRAConfig(targets=("nowhere",)),
        IA3Config(targets=(*architecture.projections, "nowhere"), feedforward=()),
        BottleneckConfig(targets=("nowhere",)),
    ):
        with pytest.raises(UnsupportedDelta, match=r"'nowhere' must match .* matched no module"):
            build(config, model)
    for other in (
        LoRAConfig(targets=architecture.projections, layers=(0, 7)),
        IA3Config(targets=architecture.projections, feedforward=(), layers=(0, 7)),
        BottleneckConfig(targets=architecture.closing[:1], layers=(0, 7)),
    ):
        with pytest.raises(UnsupportedDelta, match=r"has no layer 7 with these targets"):
            build(other, model)
    if architecture.text:
        with pytest.raises(UnsupportedDelta, match=r"has no attention in layer 7"):
            build(PrefixConfig(layers=(0, 7)), model)


def test_convolutions_of_other_shapes_are_refused() -> None:
    """Accept only 1x1 convolutions as sites, the modules that a delta changes.

    If a target matches 1x1 convolutions and others, the others are skipped.
    """
    unsupported = {
        "wide": nn.Conv2d(4, 4, 3, padding=1),
        "strided": nn.Conv2d(4, 4, 1, stride=2),
        "grouped": nn.Conv2d(4, 4, 1, groups=2),
        "padded": nn.Conv2d(4, 4, 1, padding=1),
    }
    for name, module in unsupported.items():
        with pytest.raises(UnsupportedDelta, match=f"'{name}' must match .*, matched Conv2d"):
            build(LoRAConfig(targets=(name,)), nn.ModuleDict({name: module}))
    model = nn.ModuleDict({"a": nn.ModuleDict({"conv": nn.Conv2d(4, 6, 1)}), "b": nn.ModuleDict({"conv": unsupported["wide"]})})
    assert list(build(LoRAConfig(targets=("conv",)), model).sites) == ["a.conv"]
    single = nn.ModuleDict({"one": nn.Conv2d(1, 4, 1)})
    with pytest.raises(UnsupportedDelta, match=r"one of ModuleDict has a single number to rescale"):
        build(IA3Config(targets=("one",), feedforward=("one",)), single)


@pytest.mark.parametrize("kind", ["lora", "bottleneck", "ia3"])
def test_a_layer_whose_input_has_no_batch_axis_is_refused(kind: str) -> None:
    """Refuse an input without a batch axis, such as a table that a model computes once for all rows."""
    model = nn.ModuleDict({"layer": nn.Linear(4, 6), "conv": nn.Conv2d(4, 6, 1)})
    targets = ("layer", "conv")
    config: Any = {
        "lora": LoRAConfig(targets=targets),
        "bottleneck": BottleneckConfig(targets=targets),
        "ia3": IA3Config(targets=targets, feedforward=()),
    }[kind]
    attached = build(config, model)
    attached.attach(attached.sites)
    theta = attached.initial(torch.Generator().manual_seed(0), b_std=0.1)
    with delta_scope(attached.fold({name: torch.stack([leaf, leaf]) for name, leaf in theta.items()})):
        with pytest.raises(UnsupportedDelta, match="called with 1 rows, expected a multiple of the batch's 2 groups"):
            model["layer"](torch.zeros(1, 8, 4))
        with pytest.raises(UnsupportedDelta, match=r"must be called with maps \[B, D, H, W\], got 3 axes"):
            model["conv"](torch.zeros(4, 8, 8))
