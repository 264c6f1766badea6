"""Rows of CSV, strictly by RFC 4180: what is not well formed is an error that names the line."""

import csv
from collections.abc import Iterator

from quickstudy.one_line import shown
from quickstudy.tables.errors import TableError
from quickstudy.tables.formats import NAMES
from quickstudy.tables.source import MAX_CHARACTERS, line_ends

Cells = Iterator[tuple[int, list[str]]]
"""Rows of cells, each with the number of the line that it begins in."""


def csv_rows(name: str, lines: Iterator[str], separator: str, first: int = 1) -> Cells:
    """Yield the rows of CSV. Lines that are empty, or have only separators, are left out.

    `first`: the number of the first line. Raises TableError for a quote that is not closed and for text after a closing quote.
    """
    record = _Record(name, lines, first)
    reader = csv.reader(record, delimiter=separator, strict=True)
    while True:
        record.begin()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            raise _malformed(name, record, separator) from None
        if record.text.strip(f"{separator}\r\n "):
            yield record.line, cells


def csv_row(name: str, lines: Iterator[str], separator: str, first: int) -> tuple[list[str], int]:
    """Read one row and return it, and the number of its lines. For `first` and errors see `csv_rows`."""
    record = _Record(name, lines, first)
    record.begin()
    try:
        cells = next(csv.reader(record, delimiter=separator, strict=True))
    except csv.Error:
        raise _malformed(name, record, separator) from None
    return cells, record.read


class _Record:
    """An iterator of lines that remembers those of the current record.

    `line`: the number of the record's first line. `read`: the number of lines read so far. `text`: the record's lines.
    """

    def __init__(self, name: str, lines: Iterator[str], first: int) -> None:
        self._name, self._lines, self._first = name, lines, first
        self.read, self.line, self._parts, self._size = 0, first, list[str](), 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.read += 1
        self._parts.append(line)
        self._size += len(line)
        if self._size > MAX_CHARACTERS:
            raise csv.Error("the record is too long")
        return line

    def begin(self) -> None:
        self.line, self._parts, self._size = self._first + self.read, [], 0

    @property
    def text(self) -> str:
        return "".join(self._parts)


def _malformed(name: str, record: _Record, separator: str) -> TableError:
    """Return the error for the current record, which the csv module has refused."""
    text = record.text
    opened, after = _last_quotes(text, separator)
    line = record.line + line_ends(text[: opened or 0])
    if after is not None:
        expected = NAMES.get(separator, shown(separator)).removesuffix("s")
        last = record.line + line_ends(text[:after])
        value = "a closing quote" if last == line else f"the quote that closes, in line {last}, the value that opens here"
        problem = f"expected a {expected} after {value}, got {shown(text[after])}; write a quote inside a value twice"
        return TableError(name, problem, line)
    if opened is not None:
        return TableError(name, "a quote opens a value here and is not closed", line)
    return TableError(name, f"expected values of at most {csv.field_size_limit():,} characters", record.line)


def _last_quotes(text: str, separator: str) -> tuple[int | None, int | None]:
    """Return the position of the quote that makes a record malformed, and of text after its closing quote.

    The second is None if the quote is not closed. Both are None if the quotes are well formed.
    """
    position = 0
    starts_value = True
    while position < len(text):
        letter = text[position]
        if starts_value and letter == '"':
            opened = position
            position = _closing(text, position + 1)
            if position == len(text):
                return opened, None
            position += 1
            if position < len(text) and text[position] not in f"{separator}\r\n":
                return opened, position
        starts_value = position < len(text) and text[position] in f"{separator}\r\n"
        position += 1
    return None, None


def _closing(text: str, position: int) -> int:
    """Return the position of the quote that closes a value, or the end of the text.

    Doubled quotes are part of the value.
    """
    while (position := text.find('"', position)) != -1:
        if text[position + 1 : position + 2] != '"':
            return position
        position += 2
    return len(text)
