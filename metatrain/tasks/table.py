"""Read files of labelled texts: CSV, TSV, JSON Lines or a JSON array, optionally packed with gzip.

The reader of files is that of the command line, `quickstudy.tables`. This module makes data sets of what it reads.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

from quickstudy.one_line import one_line, shown_path
from quickstudy.tables import Example, TableError, hints_about, missing_column, open_table

from metatrain.errors import DataError
from metatrain.tasks.episodes import Dataset

log = logging.getLogger(__name__)
STARTER = Path(__file__).with_name("starter_intents.jsonl")
"""The task set that ships with the package."""


def read_table(path: Path, *, text: str = "text", label: str = "label", name: str | None = None) -> Dataset:
    """Read all examples of a file as one data set, from the columns `text` and `label`.

    Exact duplicates within a class are dropped. `name`: the data set's name; None for the file's name without endings, or the
    folder's name if the file is named `full.…`. Raises DataError if the file is missing or unreadable, for a missing column, and,
    with the line number, for a malformed row and for a text or label that is none. Logs a warning for labels that look like
    several.
    """
    if not path.is_file():
        raise DataError(f"data: no file at {shown_path(path)}")
    try:
        with open_table(path, wanted=(text, label)) as table:
            for column in (text, label):
                if column not in table.columns:
                    raise DataError(f"{shown_path(path)}: {missing_column(table, column)}")
            examples = table.examples(text, label)
    except TableError as error:
        place = shown_path(path) if error.line is None else f"{shown_path(path)}:{error.line}"
        raise DataError(f"{place}: {error.problem}") from error
    for hint in hints_about(examples):
        log.warning("%s", one_line(f"{shown_path(path)}:{hint.line}: {hint.message}"))
    default_name = path.parent.name if path.name.startswith("full.") else path.name.split(".")[0]
    return by_class(name or default_name, str(path), examples)


def by_class(name: str, where: str, examples: Iterable[Example]) -> Dataset:
    """Group examples (line number, text, label) by label into a data set called `name`.

    Exact duplicates within a class are dropped. `where`: the file's name in error messages. Raises DataError if there are no
    examples.
    """
    texts: dict[str, dict[str, None]] = {}
    for _, text, label in examples:
        texts.setdefault(label, {})[text] = None
    if not texts:
        raise DataError(f"{where}: no examples")
    return Dataset(name, {label: tuple(seen) for label, seen in texts.items()})
