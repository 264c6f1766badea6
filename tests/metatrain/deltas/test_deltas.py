"""Every delta kind on every encoder: the probe, the PEFT round trip, and the meta-gradient."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import PeftModel
from transformers import AutoModel

from metatrain.artifacts.baselines import SCALE
from metatrain.artifacts.initialization import Initialization, load_initialization, save_initialization
from metatrain.deltas import BottleneckConfig, HeadConfig, IA3Config, LoRAConfig, PrefixConfig, PromptConfig
from metatrain.errors import ArtifactError, UnsupportedDelta
from metatrain.inner.config import InnerConfig
from metatrain.inner.optimizers import Optimizer
from metatrain.inner.problem import stack, start_rates
from metatrain.meta.differentiation import Differentiation
from metatrain.meta.metagrad import meta_gradient
from metatrain.models.base import Base
from metatrain.models.loading import load_base
from metatrain.models.pooling import pooled
from metatrain.readouts.heads import HEAD_LEAVES
from metatrain.serving.bank import Bank
from metatrain.serving.probe import probe
from tests.oracles.problems import Objective, central_difference, directions, text_outer, text_tasks
from tests.tiny import ARCHITECTURES, save_tiny_model, tasks

ATTENTION = {"bert": ("query", "value"), "roberta": ("query", "value"), "distilbert": ("q_lin", "v_lin"), "modernbert": ("Wqkv",)}
CLOSING = {"bert": ("output.dense",), "roberta": ("output.dense",), "distilbert": ("out_lin", "lin2"), "modernbert": ("Wo",)}
FEEDFORWARD = {"bert": "intermediate.dense", "roberta": "intermediate.dense", "distilbert": "lin1", "modernbert": "Wi"}
FILES = {
    "lora": {"adapter_config.json": "ce688427f3c66c6b", "adapter_model.safetensors": "b383feaf1b7aa661"},
    "bottleneck": {"delta.safetensors": "16996b2419350987"},
    "prefix": {"adapter_config.json": "fe83bf7cd1f3654b", "adapter_model.safetensors": "8b19737936761ffa"},
    "prompt": {"adapter_config.json": "fc43a73da23e4fd0", "adapter_model.safetensors": "32728b3f8d995be6"},
    "ia3": {"adapter_config.json": "21b8a6299aafb226", "adapter_model.safetensors": "5bbdd534fe22d0a0"},
    "head": {"delta.safetensors": "9bbcbf73561f6bc5"},
}
KINDS = ("lora", "bottleneck", "prefix", "prompt", "ia3", "head")


def config_for(kind: str, architecture: str = "bert") -> Any:
    ia3 = (*ATTENTION[architecture], FEEDFORWARD[architecture])
    return {
        "lora": LoRAConfig(rank=2, alpha=4, targets=ATTENTION[architecture]),
        "bottleneck": BottleneckConfig(rank=3, targets=CLOSING[architecture]),
        "prefix": PrefixConfig(tokens=3),
        "prompt": PromptConfig(tokens=3),
        "ia3": IA3Config(targets=ia3, feedforward=(FEEDFORWARD[architecture],)),
        "head": HeadConfig(),
    }[kind]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save_tiny_model(tmp_path_factory.mktemp(name), architecture=name) for name in ARCHITECTURES}


def load(folder: Path, attention: Any = "eager") -> Base:
    return load_base(str(folder), precision="float32", attention=attention, device=torch.device("cpu"))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_probe_passes_every_kind_on_every_encoder(
    folders: dict[str, Path], kind: str, architecture: str, attention: str
) -> None:
    """Probe each kind: compare a mixed batch with single rows and with stock PEFT.

    The probe also checks that every leaf changes the output, and that second derivatives exist if the attention implementation
    supports them.
    """
    base = load(folders[architecture], attention)
    attached = base.attach(config_for(kind, architecture))
    probe(base, attached)
    assert (attached.peft is not None) == (
        kind in ("lora", "ia3", "prompt") or (kind == "prefix" and architecture in ("bert", "roberta"))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_share_a_model_without_affecting_each_other(folders: dict[str, Path], kind: str) -> None:
    """Attach all kinds to one model. Each gives the same features as on a separate model.

    Without a delta, the model with all hooks gives the features of the bare base model.
    """
    shared, separate = load(folders["bert"], "sdpa"), load(folders["bert"], "sdpa")
    rows = shared.inputs.collate(shared.inputs.encode([text for text, _ in tasks(1)[0]]))
    bare = separate.features(None, rows)
    for other in KINDS:
        shared.attach(config_for(other))
    theta = shared.attach(config_for(kind)).initial(torch.Generator().manual_seed(0), b_std=0.3)
    features = [base.features(base.attach(config_for(kind)).fold(stack(theta, 1)), rows) for base in (shared, separate)]
    torch.testing.assert_close(features[0], features[1])
    torch.testing.assert_close(shared.features(None, rows), bare)


def test_two_configurations_of_a_kind_share_a_model(folders: dict[str, Path]) -> None:
    """Attach two configurations to one site: the first rescales the site's output, the second its input."""
    first, second = IA3Config(targets=("key", "intermediate.dense"), feedforward=()), config_for("ia3")
    shared, separate = load(folders["bert"], "sdpa"), load(folders["bert"], "sdpa")
    shared.attach(first)
    rows = shared.inputs.collate(shared.inputs.encode(["order pizza"]))
    theta = shared.attach(second).initial(torch.Generator().manual_seed(0), b_std=0.5)
    features = [base.features(base.attach(second).fold(stack(theta, 1)), rows) for base in (shared, separate)]
    assert torch.equal(*features)
    with pytest.raises(UnsupportedDelta, match="cannot be in one batch"):
        Bank(shared, [shared.attach(first), shared.attach(second)], 2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_initialization_survives_the_round_trip_and_loads_in_peft(
    folders: dict[str, Path], tmp_path: Path, kind: str, architecture: str
) -> None:
    base = load(folders[architecture], "sdpa")
    attached = base.attach(config_for(kind, architecture))
    theta = attached.initial(torch.Generator().manual_seed(0), b_std=0.3)
    rates = start_rates([*theta, *HEAD_LEAVES], 1e-3)
    inner = InnerConfig(steps=1, moved="head" if kind == "head" else "all")
    init = Initialization("mine", base.spec, config_for(kind, architecture), inner, theta, rates, SCALE, "none", {})
    save_initialization(init, tmp_path, attached)
    loaded = load_initialization(tmp_path, base)
    assert loaded.digest == init.digest and loaded.delta == init.delta
    assert (tmp_path / "delta.safetensors").is_file() == (attached.peft is None)
    if attached.peft is None:
        return
    stock = PeftModel.from_pretrained(cast(Any, AutoModel.from_pretrained(folders[architecture])), str(tmp_path)).eval()
    ids = base.inputs.encode([tasks(1)[0][2][0]])
    (bucket,) = base.inputs.collate(ids).parts
    arguments = bucket.arguments(0)
    with torch.no_grad():
        theirs = stock(**arguments).last_hidden_state
        ours = base.features(attached.fold(stack(theta, 1)), base.inputs.collate(ids))
    theirs = pooled(theirs[:, -arguments["attention_mask"].shape[1] :], arguments["attention_mask"], "mean")
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    peft_tensors = attached.peft.to_peft(theta)
    assert {name: tuple(leaf.shape) for name, leaf in peft_tensors.items()} == attached.peft.shapes
    back = attached.peft.from_peft(peft_tensors)
    assert all(torch.equal(back[name], leaf) for name, leaf in theta.items())


def test_the_files_of_every_kind_keep_their_bytes(tiny: Base, tmp_path: Path) -> None:
    """Compare the files with digests of files that commit 713d01a wrote.

    The values of each leaf are 0, 1/64, 2/64 and so on.
    """
    for kind, expected in FILES.items():
        attached = tiny.attach(config_for(kind))
        theta = {n: torch.arange(torch.Size(s).numel(), dtype=torch.float32).view(s) / 64 for n, s in attached.shapes.items()}
        spec = tiny.spec.model_copy(update={"model": "tiny"})
        init = Initialization("mine", spec, attached.config, InnerConfig(steps=1), theta, {}, SCALE, "none", {})
        save_initialization(init, tmp_path / kind, attached)
        written = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in (tmp_path / kind).iterdir()}
        assert written.items() >= expected.items()
        assert written.keys() == {*expected, "initialization.json", "inner_lr.safetensors"}


@pytest.mark.parametrize("mode", ["unrolled", "checkpointed", "adjoint"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_meta_gradient_of_every_kind_is_the_derivative_of_the_whole_procedure(tiny64: Base, kind: str, mode: str) -> None:
    attached = tiny64.attach(config_for(kind))
    outer = text_outer(attached)
    data = text_tasks(tiny64, attached, InnerConfig(steps=2, moved="head" if kind == "head" else "all"))
    found = meta_gradient(data, outer, Optimizer("sgd"), Differentiation.model_validate({"mode": mode}))
    chosen = ("layer.0.attention", "layer.1.output", "prompt", "log_rates.head", "log_scale")
    for name, toward in directions(outer, like=chosen).items():
        measured = central_difference(Objective(data, Optimizer("sgd")), outer, name, toward)
        assert measured == pytest.approx(float((found.gradients[name] * toward).sum()), rel=1e-5, abs=1e-8), name


def test_a_delta_that_does_not_fit_the_model_is_refused(tiny: Base) -> None:
    with pytest.raises(UnsupportedDelta, match=r"delta\.targets: 'q_lin' must match nn\.Linear, .* modules of BertModel"):
        tiny.attach(IA3Config(targets=("q_lin",), feedforward=()))
    with pytest.raises(UnsupportedDelta, match=r"delta\.layers: BertModel has no attention in layer 7"):
        tiny.attach(PrefixConfig(layers=(0, 7)))
    with pytest.raises(ValueError, match="feedforward: expected some of the targets"):
        IA3Config(targets=("key",), feedforward=("query",))


@pytest.mark.parametrize("config", [PromptConfig(tokens=20), PrefixConfig(tokens=20)], ids=lambda config: config.kind)
def test_the_probe_refuses_more_tokens_than_there_are_positions_for(tiny: Base, config: Any) -> None:
    with pytest.raises(UnsupportedDelta, match=f"^base.model: .*: BertModel with {config.kind} does not take rows of 64 tokens"):
        probe(tiny, tiny.attach(config))


def test_the_probe_refuses_rows_that_differ_next_to_rows_with_more_tokens(folders: dict[str, Path]) -> None:
    """Remove the hooks of the position table, as if the probe had not recognized the table by its name."""
    base = load(folders["bert"], "sdpa")
    attached = base.attach(PromptConfig(tokens=3))
    for name, module in base.model.named_modules():
        if name.endswith("position_embeddings"):
            module._forward_pre_hooks.clear()
    with pytest.raises(UnsupportedDelta, match="BertModel with prompt: a batch of unequal numbers of tokens differs"):
        probe(base, attached)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "error", [KeyError("absent"), AttributeError("no such thing\nat all"), IndexError(), ZeroDivisionError("0")]
)
def test_any_exception_in_the_probe_is_a_refusal(folders: dict[str, Path], kind: str, error: Exception) -> None:
    base = load(folders["bert"], "sdpa")
    attached = base.attach(config_for(kind))

    def fail(*_: Any) -> None:
        raise error

    base.model.register_forward_pre_hook(fail)
    quoted = [type(error).__name__, *str(error).splitlines()[:1]]
    with pytest.raises(UnsupportedDelta, match=rf"BertModel with {kind}") as refusal:
        probe(base, attached)
    assert refusal.value.__cause__ is error and "at all" not in str(refusal.value)
    assert all(part in str(refusal.value) for part in quoted)


def test_a_model_that_fails_in_the_search_for_attention_modules_keeps_its_attention(tiny_folder: Path) -> None:
    base = load(tiny_folder, "sdpa")

    def fail(*_: Any) -> None:
        raise AttributeError("no such thing\nat all")

    failing = base.model.register_forward_pre_hook(fail)
    with pytest.raises(
        UnsupportedDelta, match=r"prefix: a call of BertModel with two tokens failed: AttributeError: no such thing$"
    ):
        base.attach(PrefixConfig())
    failing.remove()
    assert cast(Any, base.model).config._attn_implementation == "sdpa"
    probe(base, base.attach(PrefixConfig()))


def test_attention_of_another_name_is_refused(tiny_folder: Path) -> None:
    base = load(tiny_folder, "sdpa")
    cast(Any, base.model).set_attn_implementation("flex_attention")
    with pytest.raises(UnsupportedDelta, match="prefix: expected eager or sdpa attention, BertModel has flex_attention"):
        base.attach(PrefixConfig())


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_says_whether_it_has_leaves(tiny: Base, kind: str) -> None:
    config = config_for(kind)
    assert config.has_leaves == bool(tiny.attach(config).shapes) == (kind != "head")


@pytest.mark.parametrize("kind", ["lora", "bottleneck", "ia3"])
@pytest.mark.parametrize("b_std", [0.0, 0.3])
def test_a_new_theta_has_the_documented_distributions(tiny: Base, kind: str, b_std: float) -> None:
    """Check the distributions of a new θ.

    LoRA's A and the bottleneck's V are Kaiming uniform in ±1/√fan_in. B and U are normal with standard deviation `b_std`. The
    factors of (IA)³ are normal around 1. Biases are zero.
    """
    theta = tiny.attach(config_for(kind)).initial(torch.Generator().manual_seed(0), b_std=b_std)
    for name, leaf in theta.items():
        if name.endswith(("lora_A.weight", "down.weight")):
            assert 0.85 < float(leaf.abs().max()) * leaf.shape[1] ** 0.5 <= 1, name
        elif name.endswith("bias"):
            assert not leaf.any(), name
        else:
            center = 1.0 if kind == "ia3" else 0.0
            assert float((leaf - center).square().mean().sqrt()) == pytest.approx(b_std, rel=0.4), name


def test_a_leaf_that_is_missing_is_named(tiny: Base, tmp_path: Path) -> None:
    attached = tiny.attach(config_for("bottleneck"))
    theta = attached.initial(torch.Generator().manual_seed(0))
    missing = next(iter(theta))
    init = Initialization(
        "mine",
        tiny.spec,
        config_for("bottleneck"),
        InnerConfig(steps=1),
        theta,
        start_rates([*theta, *HEAD_LEAVES], 1e-3),
        SCALE,
        "none",
        {},
    )
    incomplete = replace(init, theta={n: t for n, t in theta.items() if n != missing})
    save_initialization(incomplete, tmp_path, attached)
    with pytest.raises(ArtifactError, match=f"delta.safetensors: leaf {missing} is missing"):
        load_initialization(tmp_path, tiny)
