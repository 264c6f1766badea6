"""The file `history.jsonl` of a training run, with one line for each event.

Equal runs write equal bytes. A checkpoint stores the size of the file. A run that resumes from the checkpoint truncates the file to
that size, which removes the events after the checkpoint.
"""

import json
import os
from pathlib import Path
from typing import Any, BinaryIO, Self

from quickstudy.one_line import shown_path

from metatrain.errors import DataError, first_line

NAME = "history.jsonl"
_BEFORE_VERSION_2 = "history.json"


class History:
    """An append-only file of events.

    Create it with `resume`, even for a new run, or with `discard` in processes that must not write.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    @classmethod
    def resume(cls, folder: Path, size: int) -> Self:
        """Open `folder`/history.jsonl for appending, truncated to its first `size` bytes.

        Create it if it is missing and `size` is 0. Raises DataError if the file is shorter than `size`.
        """
        path = folder / NAME
        present = path.stat().st_size if path.is_file() else 0
        if present < size:
            raise DataError(f"{path}: expected at least {size} bytes, as recorded in the checkpoint, got {present}")
        file = path.open("ab")
        file.truncate(size)
        return cls(file)

    @classmethod
    def discard(cls) -> Self:
        """Return a history that writes nothing."""
        return cls(Path(os.devnull).open("ab"))

    def append(self, event: dict[str, Any]) -> None:
        self._file.write(json.dumps(event).encode() + b"\n")

    def flush(self) -> int:
        """Write the appended events to disk, and return the size of the file in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Return the events of the run in `folder`. Raises DataError without a usable history file.

    For a run made before version 2, the events are read from `history.json`.
    """
    path, earlier = folder / NAME, folder / _BEFORE_VERSION_2
    try:
        if path.is_file():
            return [json.loads(line) for line in path.read_bytes().splitlines()]
        if earlier.is_file():
            events: list[dict[str, Any]] = json.loads(earlier.read_bytes())
            return events
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shown_path(folder)}: the history of the run is not JSON: {first_line(error)}") from error
    raise DataError(f"{folder} has no {NAME}: expected the folder of a training run")
