"""A table of any format, read row by row."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

from quickstudy.one_line import shown, some
from quickstudy.tables.csv_rows import Cells, csv_rows
from quickstudy.tables.errors import TableError
from quickstudy.tables.formats import Format, format_of, separator_of, stated_separator
from quickstudy.tables.json_rows import json_array, json_lines
from quickstudy.tables.repeats import repeated
from quickstudy.tables.source import Readable, open_source
from quickstudy.tables.suspicious import Example, Layout, RowChecks
from quickstudy.tables.tsv_rows import tsv_rows
from quickstudy.tables.values import label_problem, text_problem

USUAL_NAMES = ("text", "input", "label")
"""The usual names of columns. They help to find the separator of a CSV file."""


@dataclass(frozen=True)
class Table:
    """The rows of one file. `entries` yields (line number, {column: value}), and can be read only once.

    Line numbers start at 1. In JSON, the columns are the keys of the first row, and a value may be any JSON value. Columns without
    a name are left out.
    """

    name: str
    format: Format
    columns: tuple[str, ...]
    entries: Iterator[tuple[int, dict[str, Any]]]
    layout: Layout | None = None
    """The order of the columns in CSV and TSV. None in JSON."""

    def text(self, line: int, row: dict[str, Any], column: str) -> str:
        """Return a row's text in `column`. Raises TableError if it is blank or not text."""
        if (problem := text_problem(row.get(column), column)) is not None:
            raise TableError(self.name, problem, line)
        return str(row[column])

    def label(self, line: int, row: dict[str, Any], column: str) -> str:
        """Return a row's label in `column`. Raises TableError if it is blank, missing or not text."""
        if (problem := label_problem(row.get(column), column)) is not None:
            raise TableError(self.name, problem, line)
        return str(row[column])

    def examples(self, text: str, label: str) -> list[Example]:
        """Read all rows and return (line, text, label) of each, from the columns with these names.

        Raises TableError, also for a quoted value that has swallowed the rows after it, and for one that was torn into rows.
        """
        rows = self.checked_entries(text, label)
        return [(line, self.text(line, row, text), self.label(line, row, label)) for line, row in rows]

    def checked_entries(self, text: str, label: str | None) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield `entries`, whose texts and labels are in the columns with these names.

        After the last one, raises TableError for a quoted value that has swallowed the rows after it, and for one that was torn
        into rows. Only labels show where a row begins, so nothing is checked if `label` is None.
        """
        if self.layout is None or label is None:
            yield from self.entries
            return
        checks = RowChecks(self.name, self.layout, text, label, torn=self.format == "tsv")
        for line, row in self.entries:
            checks.add(line, row)
            yield line, row
        checks.raise_if_found()


@contextmanager
def open_table(path: str | PathLike[str], wanted: Collection[str] = USUAL_NAMES) -> Iterator[Table]:
    """Open a file and yield its table. For `wanted` and errors see `table_of`."""
    try:
        stream = Path(path).open("rb")  # noqa: SIM115  # closed below
    except (OSError, ValueError) as error:  # ValueError: the name has a NUL character
        raise TableError(str(path), str(getattr(error, "strerror", None) or error)) from None
    with stream:
        yield table_of(stream, str(path), wanted=wanted)


def table_of(stream: Readable, name: str, file_format: Format | None = None, *, wanted: Collection[str] = USUAL_NAMES) -> Table:
    """Return the table in an open binary stream, which may be packed with gzip.

    If `file_format` is None, the format follows from the ending of `name`, or else from the content. `wanted`: names of columns,
    which decide where a header does not say what separates its values. Raises TableError if the file is not such a table. Reading a
    malformed row from `entries` raises TableError with the line's number.
    """
    source = open_source(stream, name)
    kind = file_format or format_of(name, source.sample)
    if kind == "json":
        return _of_objects(name, kind, json_array(source))
    if kind == "jsonl":
        return _of_objects(name, kind, json_lines(source))
    lines, first = source.lines(), 1
    stated = stated_separator(source.sample)
    if stated is not None:
        next(lines)
        first = 2
    separator = stated or ("\t" if kind == "tsv" else separator_of(name, source.sample, wanted))
    if kind == "tsv" and separator == "\t":
        return _of_cells(name, kind, separator, tsv_rows(name, lines, first))
    return _of_cells(name, kind, separator, csv_rows(name, lines, separator, first))


def _of_cells(name: str, kind: Format, separator: str, rows: Cells) -> Table:
    """Return the table whose first row names the columns."""
    first_line, header = next(rows, (1, []))
    columns = [column for column in header if column.strip()]
    if not columns:
        raise TableError(name, f"expected a first line of column names, got {'only blank ones' if header else 'nothing'}")
    if (again := repeated(columns)) is not None:
        raise TableError(name, f"expected different column names, got {shown(again)} more than once", first_line)

    def entries() -> Iterator[tuple[int, dict[str, Any]]]:
        for line, cells in rows:
            if len(cells) > 1 and not any(cell.strip() for cell in cells):
                continue  # no value in any column, even if each is written in quotes
            if len(cells) != len(header):
                raise TableError(name, f"expected {len(header)} values as in the header, got {len(cells)}", line)
            yield line, {column: cell for column, cell in zip(header, cells, strict=True) if column.strip()}

    return Table(name, kind, tuple(columns), entries(), Layout(separator, tuple(header)))


def _of_objects(name: str, kind: Format, objects: Iterator[tuple[int, dict[str, Any]]]) -> Table:
    first = next(objects, None)
    if first is None:
        raise TableError(name, "expected at least one row, got none")
    line, row = first
    if row and not row.keys() & {*USUAL_NAMES} and all(isinstance(value, dict | list) for value in row.values()):
        problem = "expected a text in one of the columns, got only objects and lists: write one object for each row"
        raise TableError(name, f"{problem}, in pandas with orient='records'", line)
    return Table(name, kind, tuple(first[1]), chain((first,), objects))


def missing_column(table: Table, column: str) -> str:
    """Return the message that a table has no such column, with the columns that it has."""
    return f"no column {shown(column)}; the columns are {some(table.columns)}"
