"""Cached probe results are used only for the same inputs, never if damaged. Failures are not cached."""

import json
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from metatrain.artifacts.baselines import lora_from_zero
from metatrain.artifacts.catalog import load_catalog
from metatrain.deltas import DeltaKind, LoRAConfig
from metatrain.errors import UnsupportedDelta
from metatrain.models.base import Base
from metatrain.models.loading import load_base
from metatrain.serving import probe as probes
from metatrain.serving import probe_cache
from metatrain.serving.probe_cache import probe_delta, probe_inputs, probe_once
from tests.warm import warm

CONFIG = LoRAConfig(rank=2, alpha=4, targets=("query",))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "quickstudy" / "probes"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record the probes that really run: return a list to which each one appends its delta configuration."""
    found, real = [], probes.probe

    def counted(base: Base, kind: DeltaKind) -> None:
        found.append(kind.config)
        real(base, kind)

    monkeypatch.setattr(probes, "probe", counted)
    return found


def test_a_success_is_remembered(tiny: Base, folder: Path, measured: list[Any]) -> None:
    for _ in range(3):
        probe_once(tiny, tiny.attach(CONFIG))
    assert measured == [CONFIG]
    (file,) = folder.iterdir()
    assert json.loads(file.read_text()) == probe_inputs(tiny, tiny.attach(CONFIG))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_catalog_remembers_its_deltas(tiny: Base, folder: Path, measured: list[Any]) -> None:
    for _ in range(2):
        load_catalog(tiny, baselines=[lora_from_zero(tiny)], probe=probe_delta)
    assert measured == [lora_from_zero(tiny).delta]


def test_another_configuration_is_measured(tiny: Base, folder: Path, measured: list[Any]) -> None:
    configs = [CONFIG, CONFIG.model_copy(update={"rank": 3}), CONFIG.model_copy(update={"targets": ("value",)})]
    for config in configs:
        probe_once(tiny, tiny.attach(config))
    assert measured == configs


def test_another_base_model_is_measured(tiny: Base, tiny_folder: Path, folder: Path, measured: list[Any]) -> None:
    cpu = torch.device("cpu")
    others = [
        load_base(str(tiny_folder), precision="float32", device=cpu, attention="eager"),
        load_base(str(tiny_folder), precision="float32", device=cpu, max_length=16),
        load_base(str(tiny_folder), precision="bfloat16", device=cpu),
    ]
    for base in (tiny, *others, load_base(str(tiny_folder), precision="float32", device=cpu)):  # the last one is the same as `tiny`
        probe_once(base, base.attach(CONFIG))
    assert len(measured) == 4


def _set_version(name: str) -> Callable[[pytest.MonkeyPatch, Base], None]:
    def change(monkeypatch: pytest.MonkeyPatch, base: Base) -> None:
        real = probe_cache._version
        monkeypatch.setattr(probe_cache, "_version", lambda wanted: "0.0" if wanted == name else real(wanted))

    return change


CHANGES: dict[str, Callable[[pytest.MonkeyPatch, Base], None]] = {
    **{name: _set_version(name) for name in probe_cache.PACKAGES},
    "sources": lambda monkeypatch, _: monkeypatch.setattr(probe_cache, "sources_digest", lambda: "other"),
    "device": lambda monkeypatch, _: monkeypatch.setattr(probe_cache, "_device_name", lambda device: "cuda NVIDIA H200"),
    "python": lambda monkeypatch, _: monkeypatch.setattr("platform.python_version", lambda: "3.99.0"),
    "matmul precision": lambda monkeypatch, _: monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium"),
    "base digest": lambda monkeypatch, base: monkeypatch.setitem(base.__dict__, "digest", "other"),
    "model configuration": lambda monkeypatch, base: monkeypatch.setattr(cast(Any, base.model).config, "layer_norm_eps", 0.5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_other_input_is_measured(
    tiny: Base, folder: Path, measured: list[Any], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    probe_once(tiny, tiny.attach(CONFIG))
    with monkeypatch.context() as changed:
        CHANGES[change](changed, tiny)
        probe_once(tiny, tiny.attach(CONFIG))
        assert len(measured) == 2
    probe_once(tiny, tiny.attach(CONFIG))
    assert len(measured) == 2


def test_the_digest_of_the_sources_covers_every_file_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = set()
    (tmp_path / "serving").mkdir()
    monkeypatch.setattr(probe_cache, "__file__", str(tmp_path / "serving" / "probe_cache.py"))
    for name, content in (("a.py", "1"), ("a.py", "2"), ("deltas.py", "1"), ("serving/b.py", "1")):
        (tmp_path / name).write_text(content)
        digests.add(probe_cache.sources_digest.__wrapped__())
    assert len(digests) == 4


BROKEN = (b"", b"{nope", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b" " * 2_000_000)


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_file_is_logged_measured_again_and_replaced(
    tiny: Base, folder: Path, measured: list[Any], caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    probe_once(tiny, tiny.attach(CONFIG))
    (file,) = folder.iterdir()
    good = file.read_bytes()
    file.write_bytes(content)
    probe_once(tiny, tiny.attach(CONFIG))
    assert len(measured) == 2 and file.read_bytes() == good
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and str(file) in record.getMessage() and "\n" not in record.getMessage()


def test_the_file_of_other_inputs_is_not_trusted(tiny: Base, folder: Path, measured: list[Any]) -> None:
    probe_once(tiny, tiny.attach(CONFIG))
    (file,) = folder.iterdir()
    file.write_text(json.dumps({**json.loads(file.read_text()), "attention": "eager"}))
    probe_once(tiny, tiny.attach(CONFIG))
    assert len(measured) == 2


def test_a_failure_is_not_remembered(tiny: Base, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = []

    def failing(base: Base, kind: DeltaKind) -> None:
        failures.append(kind)
        raise UnsupportedDelta("no")

    monkeypatch.setattr(probes, "probe", failing)
    for _ in range(2):
        with pytest.raises(UnsupportedDelta, match="no"):
            probe_once(tiny, tiny.attach(CONFIG))
    assert len(failures) == 2 and not folder.exists()


def test_a_folder_that_cannot_be_used_only_costs_time(
    tiny: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[Any]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        probe_once(tiny, tiny.attach(CONFIG))
    monkeypatch.setattr(probe_cache, "cache_folder", lambda: None)
    probe_once(tiny, tiny.attach(CONFIG))
    assert len(measured) == 3


def test_the_folder_follows_the_specification(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    at_home = tmp_path / ".cache" / "quickstudy" / "probes"
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert probe_cache.cache_folder() == at_home
    for relative in ("", "here"):
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        assert probe_cache.cache_folder() == at_home


def test_processes_at_once_remember_the_same_and_import_peft_only_to_measure(tiny: Base, tiny_folder: Path, folder: Path) -> None:
    probe_once(tiny, tiny.attach(CONFIG))
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder.parents[1])}
    logs = [folder.parents[1] / f"log{number}" for number in range(2)]
    both = [warm().start("tests.probing", str(tiny_folder), environment=environment, log=log) for log in logs]
    assert [process.wait(240) for process in both] == [0, 0], [log.read_text() for log in logs]
    imported = [[line for line in log.read_text().splitlines() if line in ("True", "False")] for log in logs]
    assert all(len(lines) == 3 and lines[0] == "False" for lines in imported)
    assert any("True" in lines for lines in imported)  # one of the two ran each probe; the other may have read the cached result
    assert len(list(folder.iterdir())) == 3  # no temporary file is left
