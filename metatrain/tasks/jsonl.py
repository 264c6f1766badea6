"""JSON Lines: one {"text": …, "label": …} object a line, optionally gzipped; other keys are left alone."""

import gzip
import json
from pathlib import Path

from metatrain.errors import DataError
from metatrain.tasks.episodes import Dataset
from metatrain.tasks.table import by_class

STARTER = Path(__file__).with_name("starter_intents.jsonl")


def read_jsonl(path: Path, name: str | None = None) -> Dataset:
    """All examples of a file as one data set; exact repeats within a class are kept once.

    Raises DataError with the line number for a line that is not such an object.
    """
    if not path.is_file():
        raise DataError(f"data: no file at {path}")
    rows: list[tuple[int, object, object]] = []
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = content.decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected UTF-8 text, gzipped where the name ends in .gz: {error}") from error
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
