"""The FILE of a command: its rows, the choice of its columns, and hints about its labels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from quickstudy import Invalid
from quickstudy.one_line import one_line, shown, shown_path, some
from quickstudy.tables import FORMATS, USUAL_NAMES, Example, Format, Table, TableError, hints_about, missing_column, table_of

_TEXTS, _LABELS = ("text", "input"), ("label",)


class Rows:
    """The rows of one file, and the choice of its columns. For `columns` and `entries` see `Table`."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.name, self.format, self.columns, self.entries = table.name, table.format, table.columns, table.entries

    def text_column(self, chosen: str | None) -> str:
        """Return the name of the column of texts: `chosen` if it is given, otherwise `text` or `input`.

        Raises TableError if there is no such column, or if both `text` and `input` exist.
        """
        return self._column(chosen, _TEXTS, "texts", "--text-column")

    def label_column(self, chosen: str | None) -> str:
        """Return the name of the column of labels: `chosen` if it is given, otherwise `label`.

        Raises TableError if there is no such column.
        """
        return self._column(chosen, _LABELS, "labels", "--label-column")

    def examples(self, text: str | None, label: str | None) -> list[Example]:
        """Read all rows and return (line, text, label) of each. Raises TableError.

        `text` and `label` are the names of the columns; None means the usual names (see `text_column` and `label_column`).
        """
        if text is None and label is None and not set(self.columns) & {*_TEXTS, *_LABELS}:
            problem = f"the columns are {some(self.columns)}: name those of the texts and the labels"
            raise TableError(self.name, f"{problem} with --text-column and --label-column")
        return self._table.examples(self.text_column(text), self.label_column(label))

    def checked_entries(self, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the rows, whose texts are in the column `text`.

        A column `label` helps to check them (see `Table`).
        """
        label = next((name for name in _LABELS if name in self.columns and name != text), None)
        return self._table.checked_entries(text, label)

    def text(self, line: int, row: dict[str, Any], column: str) -> str:
        """Return a row's text in `column`. Raises TableError if it is blank or not text."""
        return self._table.text(line, row, column)

    def _column(self, chosen: str | None, usual_names: tuple[str, ...], content: str, option: str) -> str:
        if chosen is not None:
            if chosen not in self.columns:
                raise TableError(self.name, f"{option}: {missing_column(self._table, chosen)}")
            return chosen
        matches = [name for name in usual_names if name in self.columns]
        if len(matches) == 1:
            return matches[0]
        names = " or ".join(map(shown, usual_names))
        number = "more than one is" if matches else "none is"
        problem = f"the columns are {some(self.columns)}, and {number} named {names}"
        raise TableError(self.name, f"{problem}: name the column of the {content} with {option}")


@contextmanager
def open_rows(path: str, file_format: Format | None, *columns: str | None) -> Iterator[Rows]:
    """Open a file, or standard input for `-`, and yield its rows.

    If `file_format` is None, the format is inferred (see `table_of`). `columns`: the names of columns that the user has chosen.
    Raises TableError if the file cannot be read. Reading a malformed row from `entries` raises TableError with the line number.
    """
    name = "standard input" if path == "-" else path
    wanted = [*USUAL_NAMES, *(column for column in columns if column is not None)]
    try:
        stream = click.open_file(path, "rb")
    except (OSError, ValueError) as error:  # ValueError: the name has a NUL character
        raise TableError(name, str(getattr(error, "strerror", None) or error)) from None
    with stream:
        yield Rows(table_of(stream, name, file_format, wanted=wanted))


def place_of(error: Invalid, name: str, lines: Sequence[int]) -> str:
    """Return the place in a file that an error is about, to put before its message.

    It is empty if the error is about no rows. `lines`: the line of each row that was sent.
    """
    if error.row is not None:
        return f"{shown_path(name)}, line {lines[error.row]}: "
    about_rows = error.status == 413 or error.field in ("support", "examples")
    return f"{shown_path(name)}, {len(lines)} rows: " if about_rows else ""


def show_hints(name: str, examples: Sequence[Example]) -> None:
    """Print hints about the labels of a file on stderr, each with its line."""
    for hint in hints_about(examples):
        click.echo(one_line(f"hint: {shown_path(name)}, line {hint.line}: {hint.message}"), err=True)


def format_option(command: Any) -> Any:
    """Add the option `--format` to a command that reads a file."""
    text = "Format of FILE. Default: by its suffix, or else by its beginning."
    return click.option("--format", "file_format", type=click.Choice(FORMATS), help=text)(command)
