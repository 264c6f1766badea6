"""Rows of CSV, TSV and JSON Lines, from a file or standard input, one after the other: a file of any length takes no memory."""

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
    """A file that is none of these, or has not what is asked of it."""


@dataclass(frozen=True)
class Rows:
    """`entries` are (line number, {column: value}); in JSON Lines values may be more than text."""

    name: str
    format: Format
    columns: tuple[str, ...]
    entries: Iterator[tuple[int, dict[str, Any]]]

    def text_column(self, chosen: str | None) -> str:
        return self._column(chosen, _TEXTS, "texts", "--text-column")

    def label_column(self, chosen: str | None) -> str:
        return self._column(chosen, _LABELS, "labels", "--label-column")

    def examples(self, text: str | None, label: str | None) -> list[tuple[int, str, str]]:
        """(line, text, label) of every row. Raises UnreadableRows."""
        text_column, label_column = self.text_column(text), self.label_column(label)
        return [(line, self.text(line, row, text_column), self.text(line, row, label_column)) for line, row in self.entries]

    def text(self, line: int, row: dict[str, Any], column: str) -> str:
        """A value that is a text and not empty. Raises UnreadableRows."""
        value = row.get(column)
        if not isinstance(value, str) or not value.strip():
            raise UnreadableRows(f"{self.name}, line {line}: expected a text as {column!r}, got {json.dumps(value)[:80]}")
        return value

    def _column(self, chosen: str | None, guesses: tuple[str, ...], what: str, option: str) -> str:
        has = f"{self.name} has the columns {', '.join(map(repr, self.columns))}"
        if chosen is not None:
            if chosen not in self.columns:
                raise UnreadableRows(f"{option}: no column {chosen!r}; {has}")
            return chosen
        found = [guess for guess in guesses if guess in self.columns]
        if len(found) == 1:
            return found[0]
        names = " or ".join(map(repr, guesses))
        raise UnreadableRows(
            f"{has}, and {'more than' if found else 'not'} one named {names}: say with {option} which has the {what}"
        )


@contextmanager
def opened(path: str, chosen: Format | None) -> Iterator[Rows]:
    """The rows of a file, or of standard input for `-`. What the name's ending, or the first line of standard input, leaves open is
    to be chosen. Raises UnreadableRows; so do the entries, as they are read, with the line's number."""
    name = "standard input" if path == "-" else path
    try:
        stream = click.open_file(path, "rb")
    except OSError as error:
        raise UnreadableRows(f"{path}: {error.strerror}") from None
    with stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            first = text.readline()
            kind = chosen or _BY_SUFFIX.get(Path(path).suffix.lower()) or _guessed(name, first)
            lines = chain((first,), text)
            yield _json_lines(name, lines) if kind == "jsonl" else _table(name, kind, lines)
        except UnicodeDecodeError:
            raise UnreadableRows(f"{name}: expected UTF-8 text") from None
        finally:
            text.detach()  # standard input is not ours to close


def _guessed(name: str, first: str) -> Format:
    if first.lstrip().startswith("{"):
        return "jsonl"
    if ("\t" in first) != ("," in first):
        return "tsv" if "\t" in first else "csv"
    if first.strip().isidentifier():
        return "csv"  # one column
    raise UnreadableRows(f"{name}: say with --format whether it is csv, tsv or jsonl")


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
        line = reader.line_num + 1  # where the row begins: a quoted value may go over several lines
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
                json.dumps(row, ensure_ascii=False).encode()  # escapes may stand for halves of characters, which cannot be sent
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise UnreadableRows(f"{name}, line {number}: expected a JSON object of Unicode text")
            yield number, row

    every = entries()
    first = next(every, None)
    if first is None:
        raise UnreadableRows(f"{name}: no rows")

    def whole() -> Iterator[tuple[int, dict[str, Any]]]:
        yield first
        yield from every

    return Rows(name, "jsonl", tuple(first[1]), whole())


def format_option(command: Any) -> Any:
    """`--format`, of a command that reads a file."""
    text = "Of FILE; by its ending where not said, and of standard input by its first line."
    return click.option("--format", "chosen", type=click.Choice(FORMATS), help=text)(command)
