"""Read JSON Lines files: one object {"text": …, "label": …} per line, optionally gzipped.

Other keys are ignored.
"""

import gzip
import json
from pathlib import Path

from metatrain.errors import DataError
from metatrain.tasks.episodes import Dataset
from metatrain.tasks.table import by_class

STARTER = Path(__file__).with_name("starter_intents.jsonl")


def read_jsonl(path: Path, name: str | None = None) -> Dataset:
    """Read all examples of a file as one data set. Exact duplicates within a class are dropped.

    `name`: the data set's name; None for the file's name without endings, or the folder's name if the file is named `full.…`.
    Raises DataError if the file is missing or unreadable, and, with the line number, for a line that is not an object with a text
    and a label.
    """
    if not path.is_file():
        raise DataError(f"data: no file at {path}")
    rows: list[tuple[int, object, object]] = []
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = content.decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected UTF-8 text, gzipped if the name ends in .gz: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON: {error.msg}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: expected an object with text and label, got {type(row).__name__}")
        rows.append((number, row.get("text"), row.get("label")))
    default_name = path.parent.name if path.name.startswith("full.") else path.name.split(".")[0]
    return by_class(name or default_name, str(path), rows)
