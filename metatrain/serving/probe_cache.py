"""The cache of successful load-time probes, because a probe takes longer than loading the model.

Each success is a file in `$XDG_CACHE_HOME/quickstudy/probes`. The file contains everything that the result of the probe depends on,
and its name is the sha256 of this content. Before a probe, the file with this name is read; the probe is skipped only if the
content is equal too. Failures are not cached. If the probe is skipped, neither the probe's module nor PEFT, which only the probe
needs, is imported.
"""

import functools
import hashlib
import json
import logging
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import torch

from metatrain.artifacts.files import canonical_json, read_at_most, sha256, write_atomically
from metatrain.deltas import DeltaConfig, DeltaKind
from metatrain.errors import ArtifactError
from metatrain.models.base import Base

log = logging.getLogger(__name__)
PACKAGES = ("torch", "transformers", "peft", "safetensors", "tokenizers", "numpy")
_MAX_BYTES = 1_000_000


def probe_once(base: Base, kind: DeltaKind) -> None:
    """Probe a delta kind on a base model, unless the same probe has succeeded on this machine before.

    Raises UnsupportedDelta if the delta kind does not work on the model. If the cache folder cannot be read or written, the reason
    is logged and the probe runs without a cache.
    """
    inputs = probe_inputs(base, kind)
    folder = cache_folder()
    path = folder / f"{sha256(canonical_json(inputs))}.json" if folder is not None else None
    if path is not None and _has_succeeded(path, inputs):
        return
    from metatrain.serving.probe import probe

    packs = base.backbone.packs
    probe(base, kind)
    if path is None or base.backbone.packs != packs:  # only the probe itself can find that rows have to be padded
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(path, canonical_json(inputs))
    except OSError as error:
        log.info("the result of the probe is not remembered: %s: %s", path, error.strerror)


def probe_delta(base: Base, config: DeltaConfig) -> None:
    """Probe the delta that a configuration describes, as `probe_once` does."""
    probe_once(base, base.attach(config))


def cache_folder() -> Path | None:
    """Return the folder of cached probes, or None if the user has no home folder.

    A relative XDG_CACHE_HOME is ignored, as the XDG specification demands.
    """
    stated = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        caches = stated if stated.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return caches / "quickstudy" / "probes"


def probe_inputs(base: Base, kind: DeltaKind) -> dict[str, Any]:
    """Return everything that the result of a probe depends on, as JSON values."""
    config = {key: value for key, value in cast(Any, base.model).config.to_dict().items() if key != "_name_or_path"}
    return {
        "base": base.digest,
        "model": f"{type(base.model).__module__}.{type(base.model).__qualname__}",
        # The base digest covers the weights, but not how the architecture uses them.
        "model_config": sha256(json.dumps(config, sort_keys=True, default=str).encode()),
        "attention": base.attention,
        "dtype": str(base.dtype),
        "delta": kind.config.model_dump(mode="json"),
        "device": _device_name(base.device),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "sources": sources_digest(),
    }


def _has_succeeded(path: Path, inputs: dict[str, Any]) -> bool:
    """Return True if the cache file `path` exists and has the content `inputs`.

    If the file exists but cannot be used, logs the reason.
    """
    try:
        stated = json.loads(read_at_most(path, _MAX_BYTES))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, RecursionError, ArtifactError) as error:
        log.warning("the remembered probe %s is ignored and measured again: %s", path, type(error).__name__)
        return False
    if stated != inputs:
        log.warning("the remembered probe %s is ignored and measured again: expected other content", path)
        return False
    return True


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    return f"{device.type} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


@functools.cache
def sources_digest() -> str:
    """Return the sha256 of all source files of `metatrain`, because the probe runs code from this package."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()
