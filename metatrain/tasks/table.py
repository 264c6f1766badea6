"""Read CSV and TSV files with a header and one example per row, optionally gzipped."""

import csv
import gzip
import io
from collections.abc import Iterable
from pathlib import Path

from metatrain.errors import DataError
from metatrain.tasks.episodes import Dataset


def read_table(path: Path, *, text: str = "text", label: str = "label", name: str | None = None) -> Dataset:
    """Read all examples of a file as one data set, from the columns `text` and `label`.

    Exact duplicates within a class are dropped. Columns are separated by tabs in a `.tsv` file and by commas in any other. `name`:
    the data set's name; None for the file's name without endings. Raises DataError if the file is missing or unreadable, for a
    missing column, and, with the line number, for an empty text or label.
    """
    if not path.is_file():
        raise DataError(f"data: no file at {path}")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = io.StringIO(content.decode("utf-8-sig"), newline="")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected UTF-8 text, gzipped if the name ends in .gz: {error}") from error
    rows = csv.DictReader(lines, delimiter="\t" if ".tsv" in path.suffixes else ",")
    for column in (text, label):
        if column not in (rows.fieldnames or ()):
            raise DataError(f"{path}: no column {column!r}, has {', '.join(rows.fieldnames or ()) or 'none'}")
    try:
        pairs = [(rows.line_num, row[text], row[label]) for row in rows]
    except csv.Error as error:
        raise DataError(f"{path}:{rows.line_num}: {error}") from error
    return by_class(name or path.name.split(".")[0], str(path), pairs)


def by_class(name: str, where: str, rows: Iterable[tuple[int, object, object]]) -> Dataset:
    """Group rows (line number, text, label) by label into a data set called `name`.

    Exact duplicates within a class are dropped. `where`: the file's name in error messages. Raises DataError for a text or label
    that is not a non-empty string, and if there are no rows.
    """
    texts: dict[str, dict[str, None]] = {}
    for number, text, label in rows:
        for key, value in (("text", text), ("label", label)):
            if not isinstance(value, str) or not value.strip():
                raise DataError(f"{where}:{number}: {key} must be a non-empty string, got {value!r}")
        texts.setdefault(str(label), {})[str(text)] = None
    if not texts:
        raise DataError(f"{where}: no examples")
    return Dataset(name, {label: tuple(seen) for label, seen in texts.items()})
