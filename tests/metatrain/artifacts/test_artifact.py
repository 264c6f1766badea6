import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from metatrain.artifacts.adapter import Adapter, AdapterMetadata, adapter_from_bytes, adapter_to_bytes
from metatrain.artifacts.baselines import frozen_prototypes, lora_from_zero
from metatrain.artifacts.catalog import SHIPPED
from metatrain.artifacts.files import write_atomically
from metatrain.artifacts.initialization import Initialization, load_initialization, save_initialization
from metatrain.errors import ArtifactError
from metatrain.models.base import Base


@pytest.fixture
def saved(tiny: Base, tmp_path: Path) -> tuple[Path, Initialization]:
    init = lora_from_zero(tiny)
    save_initialization(init, tmp_path / "init", tiny.attach(init.delta))
    return tmp_path / "init", init


def test_an_initialization_survives_the_round_trip(saved: tuple[Path, Initialization], tiny: Base) -> None:
    folder, init = saved
    again = load_initialization(folder, tiny)
    assert again.digest == init.digest
    assert again.inner == init.inner and again.scale == init.scale
    for name, leaf in init.theta.items():
        assert torch.equal(again.theta[name], leaf)


def test_the_digest_covers_exactly_what_determines_the_weights(tiny: Base) -> None:
    init = lora_from_zero(tiny)
    assert replace(init, name="other", provenance={"by": "us"}).digest == init.digest
    assert init.digest is init.digest  # cached, because computing it takes milliseconds and a request reads it several times
    name = next(iter(init.theta))
    for changed in (
        replace(init, scale=init.scale + 1),
        replace(init, inner=init.inner.model_copy(update={"steps": 9})),
        replace(init, theta={**init.theta, name: init.theta[name] + 1e-6}),
        replace(init, rates={**init.rates, name: init.rates[name] * 2}),
    ):
        assert changed.digest != init.digest


def edit_json(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    path = folder / "initialization.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_theta(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the weights and update their digest in the JSON file, so that only the weights are wrong."""
    import hashlib

    path = folder / "adapter_model.safetensors"
    theta = load_file(path)
    change(theta)
    save_file(theta, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit_json(folder, lambda c: c["weights_sha256"].update({path.name: digest}))  # type: ignore[attr-defined]


A = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(A), f"leaf {A} is missing"),
        (lambda t: t.update(more=torch.zeros(1)), "leaf more is not expected"),
        (lambda t: t.update({A: t[A][:, :3].contiguous()}), rf"leaf {A}: expected shape \[8, 32\], got \[8, 3\]"),
        (lambda t: t.update({A: t[A].double()}), "expected dtype torch.float32, got torch.float64"),
        (lambda t: t[A].fill_(float("inf")), "expected finite numbers"),
    ],
)
def test_loading_is_strict_about_leaves(
    saved: tuple[Path, Initialization], tiny: Base, change: Callable[..., object], message: str
) -> None:
    edit_theta(saved[0], change)
    with pytest.raises(ArtifactError, match=message):
        load_initialization(saved[0], tiny)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format_version=1), "format_version: Input should be 2"),
        (lambda c: c.update(surprise=1), "surprise: no such key; expected one of "),
        (lambda c: c["base"].update(weights_sha256="0" * 64), r"base\.weights_sha256 is '0000"),
        (lambda c: c["base"].update(max_length=32), r"base\.max_length is 32, the loaded base model .* has 64"),
        (lambda c: c["delta"].update(rank=4), "expected shape"),
        (lambda c: c["weights_sha256"].update({"inner_lr.safetensors": "0"}), "initialization.json says 0"),
        (lambda c: c.update(scale=0), "scale: Input should be greater than 0"),
    ],
)
def test_loading_is_strict_about_the_description(
    saved: tuple[Path, Initialization], tiny: Base, change: Callable[..., object], message: str
) -> None:
    edit_json(saved[0], change)
    with pytest.raises(ArtifactError, match=message):
        load_initialization(saved[0], tiny)


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "inner_lr.safetensors", "adapter_config.json", "initialization.json"]
)
def test_a_missing_file_is_named(saved: tuple[Path, Initialization], tiny: Base, name: str) -> None:
    (saved[0] / name).unlink()
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        load_initialization(saved[0], tiny)


def test_a_peft_config_that_disagrees_is_refused(saved: tuple[Path, Initialization], tiny: Base) -> None:
    path = saved[0] / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 99}))
    with pytest.raises(ArtifactError, match=r"lora_alpha: expected 16\.0 .* got 99"):
        load_initialization(saved[0], tiny)


PEFT_OWN = {
    "peft_version": "0.21.0",
    "revision": "main",
    "auto_mapping": {"base_model_class": "BertModel"},
    "qalora_group_size": 16,
    "megatron_core": "megatron.core",
    "use_dora": False,
    "rank_pattern": {},
    "layers_to_transform": None,
    "exclude_modules": [],
    "init_lora_weights": True,
    "loftq_config": {},
    "lora_bias": False,
    "fan_in_fan_out": False,
    "layer_replication": None,
}


def test_a_peft_config_as_peft_writes_it_is_read(saved: tuple[Path, Initialization], tiny: Base) -> None:
    path = saved[0] / "adapter_config.json"
    ours = json.loads(path.read_text())
    ours["target_modules"].reverse()  # PEFT writes a set
    path.write_text(json.dumps({**PEFT_OWN, **ours}))
    load_initialization(saved[0], tiny)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"use_dora": True}, "'use_dora': expected nothing .*, got true"),
        ({"use_qalora": True}, "'use_qalora': expected nothing"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "'layer_replication': expected nothing .*, got a list with 2 entries"),
        ({"an_option_of_2031": "on"}, "'an_option_of_2031': expected nothing .*, got 'on'"),
        ({"fan_in_fan_out": True}, "'fan_in_fan_out': expected nothing"),
        ({"modules_to_save": ["pooler"]}, "'modules_to_save': expected nothing"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa' changes the base model"),
        ({"kasa_config": {"beta": 1}}, "'kasa_config': expected nothing"),
        ({"\x1b[31m" + "x" * 9_000: {"a": 1}}, "expected nothing"),
    ],
)
def test_an_option_of_peft_that_is_not_understood_is_refused(
    saved: tuple[Path, Initialization], tiny: Base, option: dict[str, object], message: str
) -> None:
    path = saved[0] / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **option}))
    with pytest.raises(ArtifactError, match=message) as error:
        load_initialization(saved[0], tiny)
    assert len(str(error.value)) <= 300 and str(error.value).isprintable()


@pytest.mark.parametrize("content", ["[]", "3", "{nope", "\udcff", "[" * 100_000, '{"r": ' + "9" * 5_000 + "}"])
def test_a_peft_config_that_is_no_object_is_refused(saved: tuple[Path, Initialization], tiny: Base, content: str) -> None:
    (saved[0] / "adapter_config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ArtifactError, match=r"adapter_config.json: expected a JSON object"):
        load_initialization(saved[0], tiny)


def make_adapter(tiny: Base, labels: tuple[str, str] = ("yes", "nö")) -> Adapter:
    init = lora_from_zero(tiny)
    metadata = AdapterMetadata(
        initialization_digest=init.digest,
        base_weights_sha256=tiny.spec.weights_sha256,
        delta=init.delta,
        scale=16.0,
        labels=labels,
    )
    return Adapter(metadata, init.theta, {"head.weight": torch.randn(2, 32), "head.bias": torch.zeros(2)})


def test_an_adapter_survives_the_round_trip_and_always_gives_the_same_bytes(tiny: Base) -> None:
    adapter = make_adapter(tiny)
    content = adapter_to_bytes(adapter)
    assert adapter_to_bytes(adapter) == content
    again = adapter_from_bytes(content, tiny)
    assert again.metadata == adapter.metadata
    assert torch.equal(again.answering["head.weight"], adapter.answering["head.weight"])
    assert adapter_to_bytes(again) == content


def test_bytes_that_are_not_an_adapter_for_this_base_are_refused(tiny: Base) -> None:
    adapter = make_adapter(tiny)
    for content in (b"", b"not safetensors at all", adapter_to_bytes(adapter)[:-8]):
        with pytest.raises(ArtifactError):
            adapter_from_bytes(content, tiny)
    other = adapter.metadata.model_copy(update={"base_weights_sha256": "0" * 64})
    with pytest.raises(ArtifactError, match="base weights"):
        adapter_from_bytes(adapter_to_bytes(Adapter(other, adapter.delta, adapter.answering)), tiny)
    with pytest.raises(ArtifactError, match=r"head\.weight: expected shape \[2, 32\], got \[3, 32\]"):
        wide = {**adapter.answering, "head.weight": torch.zeros(3, 32)}
        adapter_from_bytes(adapter_to_bytes(Adapter(adapter.metadata, adapter.delta, wide)), tiny)


def test_a_failed_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"before")

    def disk_full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"after, and longer")
    assert path.read_bytes() == b"before"


def test_exactly_four_files_are_written_and_frozen_prototypes_have_no_steps_and_a_zero_delta(
    saved: tuple[Path, Initialization], tiny: Base
) -> None:
    files = {path.name for path in saved[0].iterdir()}
    assert files == {"adapter_model.safetensors", "adapter_config.json", "inner_lr.safetensors", "initialization.json"}
    frozen = frozen_prototypes(tiny)
    assert frozen.inner.steps == 0 and not any(leaf.any() for leaf in frozen.theta.values())


def test_the_digest_survives_the_round_trip_for_every_scale(tiny: Base, tmp_path: Path) -> None:
    plain = lora_from_zero(tiny)
    for scale in (15.859522819519043, 0.1, 49.0):
        init = replace(plain, scale=scale)
        save_initialization(init, tmp_path / str(scale), tiny.attach(init.delta))
        assert load_initialization(tmp_path / str(scale), tiny).digest == init.digest


def test_the_shipped_default_and_the_baselines_keep_their_digests(minilm: Base) -> None:
    """Check fixed digests: if the formula changed, stored adapters would not find their initialization."""
    folder = SHIPPED / "default"
    init = load_initialization(folder, minilm)
    assert init.digest.startswith("51225390fe39")
    assert init.provenance["recipe_digest"].startswith("3014795c78f3")  # the digest of recipes/default.yaml, version 1
    assert {i.name: i.digest[:12] for i in (frozen_prototypes(minilm), lora_from_zero(minilm))} == {
        "frozen-prototypes": "af4facba42c2",
        "lora-from-zero": "ac74ba3b0d47",
    }
