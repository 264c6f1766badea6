"""The reading of the files in a model's folder, and the error for a file that cannot be used.

Files of other people are often incomplete: a download that stopped, a Git LFS pointer in place of the file, JSON that was edited by
hand. Every function here raises BaseModelError for such a file, with a message of one short line.
"""

import hashlib
import json
import os.path
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from quickstudy.one_line import shown_path
from safetensors import SafetensorError, safe_open

from metatrain.errors import BaseModelError

_MOST_PATH_CHARS, _MOST_REASON_CHARS = 80, 130
"""The most characters of a folder, of which the end is shown, and of a library's message, of which the beginning is shown."""
_LFS_POINTER = b"version https://git-lfs"


class StoredTensor(NamedTuple):
    """A tensor as the header of a safetensors file describes it.

    `dtype`: its name in the header, for example `F32` or `I64`.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def is_floating(self) -> bool:
        return self.dtype.startswith(("F", "BF"))


def not_loadable(folder: Path, problem: str) -> BaseModelError:
    """Return the error for a model folder that cannot be used."""
    return BaseModelError(f"base.model: {shown_path(folder, _MOST_PATH_CHARS)} does not load as a text encoder: {problem}")


@contextmanager
def errors_of(folder: Path, what: str = "") -> Iterator[None]:
    """Raise BaseModelError in place of any error of the libraries that read a model's files.

    They raise errors of many unrelated types for a file that they cannot use. `what`: the files, for the message.
    """
    try:
        yield
    except BaseModelError:
        raise
    except BaseException as error:
        # A panic in the Rust code of a library is not an Exception, and its class cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        if len(reason) > _MOST_REASON_CHARS:
            reason = f"{reason[:_MOST_REASON_CHARS]}…"
        if isinstance(error, LookupError | TypeError | AttributeError):  # the message alone may be no more than the name of a key
            reason = f"an entry is missing, or its type or value is not supported ({type(error).__name__}: {reason})"
        raise not_loadable(folder, f"{what}: {reason}" if what else reason) from error


def read_json(folder: Path, name: str) -> Any:
    """Return the content of a JSON file in a model folder.

    Raises BaseModelError if it is missing or not valid JSON.
    """
    path = folder / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise not_loadable(folder, f"{name}: {reason_of(error)}") from error
    _check_no_pointer(folder, name, content)
    try:
        return json.loads(content.decode("utf-8-sig"))
    except RecursionError as error:
        raise not_loadable(folder, f"{name}: the JSON is nested too deeply") from error
    except ValueError as error:  # also a UnicodeDecodeError
        raise not_loadable(folder, f"{name} is not valid JSON: {error}") from error


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """Return the content of a JSON file that has to hold an object. Raises BaseModelError otherwise."""
    content = read_json(folder, name)
    if not isinstance(content, dict):
        raise not_loadable(folder, f"{name}: expected a JSON object, got {_kind_of(content)}")
    return content


def read_object_if_present(folder: Path, name: str) -> dict[str, Any]:
    """Return the content of a JSON file as `read_object` does, or an empty dict if there is no such file."""
    return read_object(folder, name) if is_present(folder, name) else {}


def is_present(folder: Path, name: str) -> bool:
    """Return True if a model folder has such a file, or a link to nothing in its place.

    Such a link is left by an incomplete download; its file is then an error when it is read, and does not count as absent.
    """
    path = folder / name
    return os.path.lexists(path) or (path.parent.is_symlink() and not path.parent.exists())


def _kind_of(content: Any) -> str:
    return {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(type(content), "a number")


def check_no_pointer(folder: Path, name: str) -> None:
    """Raise BaseModelError if a file is a Git LFS pointer, or if it is present and cannot be read."""
    if not is_present(folder, name):
        return
    try:
        with (folder / name).open("rb") as file:
            _check_no_pointer(folder, name, file.read(len(_LFS_POINTER)))
    except OSError as error:
        raise not_loadable(folder, f"{name}: {reason_of(error)}") from error


def stored_tensors(folder: Path, name: str) -> dict[str, StoredTensor]:
    """Return the tensors in a safetensors file, by name. Reads only the file's header.

    Raises BaseModelError if the file is missing, a Git LFS pointer, truncated, or not a safetensors file.
    """
    path = folder / name
    try:
        with path.open("rb") as file:
            beginning = file.read(len(_LFS_POINTER))
        _check_no_pointer(folder, name, beginning)
        with safe_open(str(path), framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118, it is no dict
            return {key: StoredTensor(tuple(each.get_shape()), str(each.get_dtype())) for key, each in slices.items()}
    except (OSError, ValueError) as error:  # a ValueError for a name with a null character
        raise not_loadable(folder, f"{name}: {reason_of(error)}") from error
    except SafetensorError as error:
        raise not_loadable(folder, f"{name} is not a complete safetensors file: {_reason(path, error)}") from error


def reason_of(error: Exception) -> str:
    """Return why a file could not be opened, in the words of the system and without the path."""
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def _reason(path: Path, error: SafetensorError) -> str:
    """Return the reason of an error in words. Of a truncated file, it states how many bytes are missing."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = file.read(8)
        if len(length) == 8 and (header_bytes := struct.unpack("<Q", length)[0]) <= size:
            try:
                ends = [
                    entry["data_offsets"][1] for key, entry in json.loads(file.read(header_bytes)).items() if key != "__metadata__"
                ]
                expected = 8 + header_bytes + max(ends)
            except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
                expected = size
            if expected > size:
                return f"expected {expected} bytes, got {size}"
    return str(error)


def _check_no_pointer(folder: Path, name: str, content: bytes) -> None:
    if content.startswith(_LFS_POINTER):
        raise not_loadable(folder, f"{name} is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
