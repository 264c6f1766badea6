"""A reader of CSV, TSV and JSON Lines. It reads row by row, so that long files need little memory."""

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import click

Format = Literal["csv", "tsv", "jsonl"]
FORMATS: tuple[Format, ...] = ("csv", "tsv", "jsonl")
_BY_SUFFIX: dict[str, Format] = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_TEXTS, _LABELS = ("text", "input"), ("label",)


class UnreadableRows(click.UsageError):
    """A file that cannot be read as CSV, TSV or JSON Lines, or that lacks a column or value."""


@dataclass(frozen=True)
class Rows:
    """The rows of one file. `entries` yields (line number, {column: value}), and can be read only once.

    Line numbers start at 1. In JSON Lines, the columns are the keys of the first row, and a value may be any JSON value.
    """

    name: str
    format: Format
    columns: tuple[str, ...]
    entries: Iterator[tuple[int, dict[str, Any]]]

    def text_column(self, chosen: str | None) -> str:
        """Return the name of the column of texts: `chosen` if it is given, otherwise `text` or `input`.

        Raises UnreadableRows if there is no such column, or if both `text` and `input` exist.
        """
        return self._column(chosen, _TEXTS, "texts", "--text-column")

    def label_column(self, chosen: str | None) -> str:
        """Return the name of the column of labels: `chosen` if it is given, otherwise `label`.

        Raises UnreadableRows if there is no such column.
        """
        return self._column(chosen, _LABELS, "labels", "--label-column")

    def examples(self, text: str | None, label: str | None) -> list[tuple[int, str, str]]:
        """Read all rows and return (line, text, label) of each. Raises UnreadableRows.

        `text` and `label` are the names of the columns; None means the usual names (see `text_column` and `label_column`).
        """
        if text is None and label is None and not set(self.columns) & {*_TEXTS, *_LABELS}:
            columns = f"{self.name} has the columns {', '.join(map(repr, self.columns))}"
            raise UnreadableRows(f"{columns}: name those of the texts and the labels with --text-column and --label-column")
        text_column, label_column = self.text_column(text), self.label_column(label)
        return [(line, self.text(line, row, text_column), self.text(line, row, label_column)) for line, row in self.entries]

    def text(self, line: int, row: dict[str, Any], column: str) -> str:
        """Return a row's value in `column`. Raises UnreadableRows if it is blank or not text."""
        value = row.get(column)
        if not isinstance(value, str) or not value.strip():
            raise UnreadableRows(f"{self.name}, line {line}: expected a text as {column!r}, got {json.dumps(value)[:80]}")
        return value

    def _column(self, chosen: str | None, usual_names: tuple[str, ...], content: str, option: str) -> str:
        columns = f"{self.name} has the columns {', '.join(map(repr, self.columns))}"
        if chosen is not None:
            if chosen not in self.columns:
                raise UnreadableRows(f"{option}: no column {chosen!r}; {columns}")
            return chosen
        matches = [name for name in usual_names if name in self.columns]
        if len(matches) == 1:
            return matches[0]
        names = " or ".join(map(repr, usual_names))
        raise UnreadableRows(
            f"{columns}, and {'more than one' if matches else 'none'} named {names}: name the column of the {content} with {option}"
        )


@contextmanager
def open_rows(path: str, file_format: Format | None) -> Iterator[Rows]:
    """Open a file, or standard input for `-`, and yield its rows.

    If `file_format` is None, the format is inferred from the file's suffix, or else from its first line. Raises UnreadableRows if
    that is not possible or the file cannot be read. Reading a malformed row from `entries` raises UnreadableRows with the line
    number.
    """
    name = "standard input" if path == "-" else path
    try:
        stream = click.open_file(path, "rb")
    except OSError as error:
        raise UnreadableRows(f"{path}: {error.strerror}") from None
    with stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            first = text.readline()
            kind = file_format or _BY_SUFFIX.get(Path(path).suffix.lower()) or _guess_format(name, first)
            lines = chain((first,), text)
            yield _json_lines(name, lines) if kind == "jsonl" else _table(name, kind, lines)
        except UnicodeDecodeError:
            raise UnreadableRows(f"{name}: expected UTF-8 text") from None
        finally:
            text.detach()  # closing the wrapper would close standard input


def _guess_format(name: str, first: str) -> Format:
    if first.lstrip().startswith("{"):
        return "jsonl"
    if ("\t" in first) != ("," in first):
        return "tsv" if "\t" in first else "csv"
    if first.strip().isidentifier():
        return "csv"  # one column
    raise UnreadableRows(f"{name}: unknown format; choose csv, tsv or jsonl with --format")


def _table(name: str, kind: Format, lines: Iterator[str]) -> Rows:
    reader = csv.reader(lines, delimiter="\t" if kind == "tsv" else ",", strict=True)

    def entries() -> Iterator[tuple[int, dict[str, Any]]]:
        for line, cells in _cells(name, reader):
            if len(cells) != len(header):
                raise UnreadableRows(f"{name}, line {line}: expected {len(header)} values as in the header, got {len(cells)}")
            yield line, dict(zip(header, cells, strict=True))

    _, header = next(_cells(name, reader), (0, []))
    if not header or len(set(header)) != len(header) or not all(column.strip() for column in header):
        raise UnreadableRows(f"{name}: expected a first line of different column names, got {', '.join(header) or 'nothing'}")
    return Rows(name, kind, tuple(header), entries())


def _cells(name: str, reader: Any) -> Iterator[tuple[int, list[str]]]:
    while True:
        line = reader.line_num + 1  # the row's first line, because a quoted value may span several
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UnreadableRows(f"{name}, line {line}: {error}") from None
        if cells:
            yield line, cells


def _json_lines(name: str, lines: Iterator[str]) -> Rows:
    def entries() -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                json.dumps(row, ensure_ascii=False).encode()  # fails for an escaped lone surrogate, which cannot be sent
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise UnreadableRows(f"{name}, line {number}: expected a JSON object of Unicode text")
            yield number, row

    remaining = entries()
    first = next(remaining, None)
    if first is None:
        raise UnreadableRows(f"{name}: expected at least one row, got none")

    def all_entries() -> Iterator[tuple[int, dict[str, Any]]]:
        yield first
        yield from remaining

    return Rows(name, "jsonl", tuple(first[1]), all_entries())


def format_option(command: Any) -> Any:
    """Add the option `--format` to a command that reads a file."""
    text = "Format of FILE. Default: by its suffix, or for standard input by its first line."
    return click.option("--format", "file_format", type=click.Choice(FORMATS), help=text)(command)
