"""Malformed and manipulated files raise an ArtifactError that names the leaf (tensor) or the file.

A file that claims huge sizes is refused before that much memory is allocated.
"""

import json
import pickle
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metatrain.artifacts.adapter import adapter_from_bytes, adapter_metadata, adapter_to_bytes
from metatrain.artifacts.baselines import lora_from_zero
from metatrain.artifacts.initialization import load_initialization, save_initialization
from metatrain.errors import ArtifactError
from metatrain.models.base import Base
from tests.metatrain.artifacts.test_artifact import make_adapter

MAX_ALLOCATED = 8_000_000
"""The most bytes that reading a small file may allocate. The files in these tests claim sizes of up to 2^62."""
WEIGHTS, RATES = "adapter_model.safetensors", "inner_lr.safetensors"


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Split the bytes of a safetensors file into (header, bytes of all tensors)."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: object, numbers: bytes) -> bytes:
    """Return the bytes of a safetensors file with this header. This is the inverse of `split`."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + numbers


@pytest.fixture(scope="module")
def good(tiny: Base) -> bytes:
    return adapter_to_bytes(make_adapter(tiny, ("yes", "no")))


def refused(content: bytes, tiny: Base) -> str:
    """Read `content`, which must fail, and return the error message. Check that it used little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError) as error:
            adapter_from_bytes(content, tiny)
        assert tracemalloc.get_traced_memory()[1] < MAX_ALLOCATED
    finally:
        tracemalloc.stop()
    message = str(error.value)
    assert message.startswith("adapter") and len(message) < 1_000 and "\n" not in message
    return message


def with_metadata(good: bytes, **fields: Any) -> bytes:
    """Return the bytes of an adapter with these metadata fields changed."""
    header, numbers = split(good)
    header["__metadata__"]["quickstudy"] = json.dumps({**json.loads(header["__metadata__"]["quickstudy"]), **fields})
    return joined(header, numbers)


def with_leaf(good: bytes, name: str = "head.bias", **fields: Any) -> bytes:
    """Return the bytes of an adapter with these header fields of the leaf `name` changed."""
    header, numbers = split(good)
    header[name].update(fields)
    return joined(header, numbers)


def test_what_is_wrong_is_named(good: bytes, tiny: Base) -> None:
    header, numbers = split(good)
    end = len(numbers)
    raw = json.dumps(header)
    twice = raw[:-1] + ', "head.bias": ' + json.dumps(header["head.bias"]) + "}"
    begin, stop = header["head.bias"]["data_offsets"]
    cases: list[tuple[bytes, str]] = [
        (b"", "not a safetensors file: 0 bytes"),
        (b"\x80\x04K\x01.", "not a safetensors file: 5 bytes"),
        (pickle.dumps({"head.bias": list(range(100))}), "not a safetensors file: header: expected at most"),
        ((2**63).to_bytes(8, "little") + b"{}", "header: expected at most 2 bytes"),
        (good[:-1], "expected .* bytes, got"),
        (good + b"\0", "expected .* bytes, got"),
        (joined(b"[" * 100_000, b""), "not a safetensors file: header"),
        (joined(b"[]", b""), "expected a JSON object"),
        (joined(b"\xff{}", b""), "not a safetensors file: header"),
        (joined(twice.encode(), numbers), "expected each key once, got head.bias twice"),
        (
            joined({**header, "more": {"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]}}, numbers + bytes(4)),
            "leaf more is",
        ),
        (joined({k: v for k, v in header.items() if k != "head.bias"}, numbers), "leaf head.bias is missing"),
        (joined({**header, "__metadata__": {}}, numbers), "header: document"),
        (joined({**header, "__metadata__": {"quickstudy": 7}}, numbers), "__metadata__: expected an object of strings"),
        (joined({**header, "__metadata__": {"quickstudy": "\ud800"}}, numbers), "surrogates"),
        (with_leaf(good, shape=[2**40]), r"leaf head\.bias: expected shape \[2\], got \[1099511627776\]"),
        (with_leaf(good, shape=[2**31, 2**31]), r"leaf head\.bias: expected shape \[2\]"),
        (with_leaf(good, shape=[-2]), r"leaf head\.bias: shape: expected"),
        (with_leaf(good, shape=[2.0]), r"leaf head\.bias: shape: expected"),
        (with_leaf(good, shape=[True, 2]), r"leaf head\.bias: shape: expected"),
        (with_leaf(good, shape=[1] * 100_000), r"leaf head\.bias: shape: expected at most 8"),
        (with_leaf(good, dtype="F64"), r"leaf head\.bias: expected dtype torch\.float32, got torch\.float64"),
        (with_leaf(good, dtype="I8"), r"leaf head\.bias: expected dtype torch\.float32, got I8"),
        (with_leaf(good, data_offsets=[begin, 2**50]), r"leaf head\.bias: data_offsets"),
        (with_leaf(good, data_offsets=[stop, begin]), "leaf .*: data_offsets"),
        (with_leaf(good, data_offsets=[0, stop - begin]), "leaf .*: data_offsets"),
        (with_leaf(good, more=1), r"leaf head\.bias: expected dtype, shape and data_offsets"),
        (joined(raw.replace('"head.bias"', '"head.bias\\ud800"').encode(), numbers), "surrogates"),
        (with_metadata(good, base_weights_sha256="0" * 64), "adapter: made for base weights 0000"),
        (with_metadata(good, labels=["yes"]), r"leaf head\.weight: expected shape \[1, 32\]|leaf head\.bias: expected shape \[1\]"),
        (with_metadata(good, labels=["yes", "yes"]), "labels: expected each once"),
        (with_metadata(good, scale=float("inf")), "scale"),
        (with_metadata(good, format_version=3), "format_version"),
        (with_metadata(good, delta={"kind": "lora", "rank": 2**40, "alpha": 1, "targets": ["query"]}), "leaf|delta"),
        (with_metadata(good, delta={"kind": "lora", "rank": 2, "alpha": 1, "targets": ["nothing"]}), "header: delta: "),
        (with_metadata(good, delta={"kind": "prefix", "tokens": 2**40}), "leaf|delta"),
        (with_metadata(good, delta={"kind": "os.system"}), "header: delta"),
    ]
    for content, message in cases:
        with pytest.raises(ArtifactError, match=message):
            adapter_from_bytes(content, tiny)
        refused(content, tiny)
    for number in (float("nan"), float("inf")):
        not_finite = joined(raw.encode(), numbers[:begin] + torch.tensor([0.0, number]).numpy().tobytes() + numbers[stop:])
        assert "leaf head.bias: expected finite numbers" in refused(not_finite, tiny)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_are_accepted_or_give_an_artifact_error(good: bytes, tiny: Base, data: st.DataObject) -> None:
    """Replace, remove and insert bytes, mostly in the header.

    If the changed bytes are accepted, their number must be unchanged and the adapter's values must be finite.
    """
    content, length = bytearray(good), 8 + int.from_bytes(good[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(0, 8), st.integers(8, length), st.integers(0, len(content) - 1)))
        new = data.draw(st.binary(max_size=12))
        content[at : at + data.draw(st.integers(0, 12))] = new
    try:
        adapter = adapter_from_bytes(bytes(content), tiny)
    except ArtifactError as error:
        assert str(error).startswith("adapter") and len(str(error)) < 1_000
        return
    assert len(content) == len(good) and all(torch.isfinite(each).all() for each in adapter.delta.values())


NAMES = st.sampled_from(["head.bias", "head.weight", "more", "__metadata__", "", "delta."])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["F32", [2], [2, 32], [0, 8]]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changed=st.dictionaries(NAMES, JSON, min_size=1, max_size=3))
def test_a_changed_header_gives_an_artifact_error(good: bytes, tiny: Base, changed: dict[str, Any]) -> None:
    header, numbers = split(good)
    content = joined({**header, **changed}, numbers)
    if {**header, **changed} != header:
        refused(content, tiny)
    with suppress(ArtifactError):
        adapter_metadata(content)


@pytest.fixture
def folder(tiny: Base, tmp_path: Path) -> Path:
    init = lora_from_zero(tiny)
    name = next(iter(dict(tiny.model.named_parameters())))
    updated = replace(init, base_update={name: dict(tiny.model.named_parameters())[name].detach().clone()})
    save_initialization(updated, tmp_path / "init", tiny.attach(init.delta))
    assert load_initialization(tmp_path / "init", tiny).base_update
    return tmp_path / "init"


def with_digest(folder: Path, name: str, content: bytes) -> None:
    """Write a file and put its new digest in the JSON file, as an attacker would."""
    (folder / name).write_bytes(content)
    path = folder / "initialization.json"
    described = json.loads(path.read_text())
    described["weights_sha256"][name] = sha256(content).hexdigest()
    path.write_text(json.dumps(described))


@pytest.mark.parametrize("name", [WEIGHTS, RATES, "base_update.safetensors"])
def test_each_file_of_an_initialization_is_as_strict(folder: Path, tiny: Base, name: str) -> None:
    content = (folder / name).read_bytes()
    header, numbers = split(content)
    first = next(key for key in header if key != "__metadata__")
    changes: list[Callable[[], bytes]] = [
        lambda: content[:-3],
        lambda: content[:5],
        lambda: pickle.dumps({first: [1.0] * 100}),
        lambda: joined({**header, first: {**header[first], "shape": [2**45]}}, numbers),
        lambda: joined({**header, first: {**header[first], "dtype": "F16"}}, numbers),
        lambda: joined({**header, "more": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}, numbers),
        lambda: joined(header, b"\xff" * len(numbers)),
    ]
    for change in changes:
        with_digest(folder, name, change())
        with pytest.raises(ArtifactError) as error:
            load_initialization(folder, tiny)
        message = str(error.value)
        assert name in message and ("leaf " in message or "not a safetensors file" in message or "bytes" in message), message


def test_a_file_that_says_it_is_vast_is_not_read(folder: Path, tiny: Base) -> None:
    for name in (WEIGHTS, RATES, "base_update.safetensors", "initialization.json", "adapter_config.json"):
        kept = (folder / name).read_bytes()
        with (folder / name).open("r+b") as file:
            file.truncate(2**40)  # a sparse file of one terabyte that uses no disk space
        tracemalloc.start()
        try:
            with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
                load_initialization(folder, tiny)
            assert tracemalloc.get_traced_memory()[1] < 5 * MAX_ALLOCATED
        finally:
            tracemalloc.stop()
        (folder / name).write_bytes(kept)
    load_initialization(folder, tiny)
