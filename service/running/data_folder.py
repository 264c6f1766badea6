"""The data folder of the embedded server: only its owner may enter it, or read its files."""

import contextlib
import logging
import os
import stat
from pathlib import Path
from typing import IO, Any

log = logging.getLogger(__name__)
_FOLDER_MODE, _FILE_MODE = 0o700, 0o600
_OTHERS = 0o077
_OWN_FILES = ("lock", "url", "redis.log", "appendonlydir", "appendonlydir/*")
"""What is in a data folder. Nothing else is changed, because `--data-dir` may by mistake name a folder with other files."""


def prepare_data_folder(folder: Path) -> None:
    """Create a data folder with mode 0700, and its missing parents likewise.

    An existing folder is closed to other users, with the data in it. Raises PermissionError if other users may enter the folder and
    it belongs to one of them, and OSError if it cannot be created.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=_FOLDER_MODE, exist_ok=True)
    found = folder.stat()
    mode = stat.S_IMODE(found.st_mode)
    if mode & _OTHERS:
        if found.st_uid != os.geteuid():
            ours, expected = os.geteuid(), "or one with mode 0700"
            message = f"expected a folder of user {ours} {expected}, got one of user {found.st_uid} with mode {mode:04o}"
            raise PermissionError(1, message)
        folder.chmod(mode & ~_OTHERS)
        log.warning("%s had mode %04o: now only its owner may enter it", folder, mode)
    for path in (path for pattern in _OWN_FILES for path in folder.glob(pattern)):
        _close_to_others(path)


def _close_to_others(path: Path) -> None:
    """Remove the permissions of other users from a file or folder.

    Does nothing if it is a link or belongs to another user.
    """
    with contextlib.suppress(FileNotFoundError):  # a server that is running removes files
        found = path.lstat()
        if found.st_uid == os.geteuid() and not stat.S_ISLNK(found.st_mode) and found.st_mode & _OTHERS:
            path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)


def open_privately(path: Path, mode: str) -> IO[Any]:
    """Open a file for writing that only its owner may read, with the mode 0600 if it is new."""
    return open(path, mode, opener=lambda name, flags: os.open(name, flags, _FILE_MODE))
