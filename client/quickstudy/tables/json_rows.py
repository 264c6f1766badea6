"""Rows of JSON: an object in each line, or one array of objects, which is read object by object."""

import io
import json
import math
from collections.abc import Iterator
from itertools import count
from typing import Any, Self

from quickstudy.one_line import shown
from quickstudy.tables.errors import TableError
from quickstudy.tables.repeats import repeated
from quickstudy.tables.source import MAX_CHARACTERS, Source

Objects = Iterator[tuple[int, dict[str, Any]]]
"""Objects, each with the number of the line that it begins in."""
_PART = 65_536
_SPACE = " \t\r\n"
_NOT_LINES = "expected one JSON object in each line, or one array of objects"


class RowLine(int):
    """The number of the line that a row of an array begins in.

    Its text has the number of the row too, because an array may be one line.
    """

    row: int

    def __new__(cls, line: int, row: int) -> Self:
        number = super().__new__(cls, line)
        number.row = row
        return number

    def __str__(self) -> str:
        return f"{int(self)} (row {self.row})"


class _Refused(ValueError):
    """A value that is JSON and yet is not taken: a repeated key, or a number that is too large."""


def json_lines(source: Source) -> Objects:
    """Yield the objects of JSON Lines. Empty lines are left out. Raises TableError with the line's number."""
    for number, line in enumerate(source.lines(), start=1):
        if not line.strip():
            continue
        try:
            row = _DECODER.decode(line.strip())
        except json.JSONDecodeError as error:
            raise TableError(source.name, f"{_NOT_LINES}: {error.msg}", number) from None
        except (ValueError, RecursionError) as error:
            raise _unusable(source.name, error, number) from None
        yield number, _checked(source.name, row, line, number)


def json_array(source: Source) -> Objects:
    """Yield the objects of an array, one at a time. Raises TableError with the line and the row."""
    reader, rows = _ArrayReader(source), count(1)
    reader.expect("[", "expected a JSON array of objects")
    if reader.next_letter() == "]":
        reader.skip(1)
    else:
        while True:
            reader.next_letter()
            line = RowLine(reader.line, next(rows))
            yield line, _checked(source.name, *reader.value(line.row), line)
            if reader.next_letter() != ",":
                break
            reader.skip(1)
        reader.expect("]", "expected a comma or the end of the array after an object")
    if letter := reader.next_letter():
        raise TableError(source.name, f"expected nothing after the array, got {shown(letter)}", reader.line)


class _ArrayReader:
    """A reader of JSON values one after the other. `line`: the number of the line of the next character."""

    def __init__(self, source: Source) -> None:
        self._source, self._buffer, self._at = source, "", 0
        self._line_ends = io.IncrementalNewlineDecoder(None, translate=True)
        self.line = 1

    def next_letter(self) -> str:
        """Skip white space and return the next character, or an empty text at the end of the file."""
        while True:
            while self._at < len(self._buffer):
                if self._buffer[self._at] not in _SPACE:
                    return self._buffer[self._at]
                self.skip(1)
            if not self._more(_PART):
                return ""

    def expect(self, letter: str, problem: str) -> None:
        """Skip `letter`. Raises TableError with `problem` if something else comes next."""
        if (found := self.next_letter()) != letter:
            raise TableError(self._source.name, f"{problem}, got {shown(found) if found else 'the end of the file'}", self.line)
        self.skip(1)

    def skip(self, count: int) -> None:
        self.line += self._buffer.count("\n", self._at, self._at + count)
        self._at += count

    def value(self, number: int) -> tuple[Any, str]:
        """Read the value of row `number`, and return it and its text.

        More of the file is read until the value is complete or too long.
        """
        while True:
            try:
                row, end = _DECODER.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                if self._more(max(_PART, len(self._buffer) - self._at)):  # the value may end in what was not read yet
                    continue
                line = RowLine(self.line + self._buffer.count("\n", self._at, max(self._at, error.pos)), number)
                if len(self._buffer) - self._at > MAX_CHARACTERS:
                    problem = f"expected a JSON object of at most {MAX_CHARACTERS:,} characters: {error.msg}"
                    raise TableError(self._source.name, problem, line) from None
                raise TableError(self._source.name, f"not JSON: {error.msg}", line) from None
            except (ValueError, RecursionError) as error:
                raise _unusable(self._source.name, error, RowLine(self.line, number)) from None
            text = self._buffer[self._at : end]
            self.skip(len(text))
            return row, text

    def _more(self, size: int) -> bool:
        """Read more of the file. Return False at its end, and if the buffered value is too long."""
        if len(self._buffer) - self._at > MAX_CHARACTERS:
            return False
        part = self._source.read(size, self.line)
        self._buffer, self._at = self._buffer[self._at :] + self._line_ends.decode(part, final=not part), 0
        return bool(part)


def _checked(name: str, row: Any, text: str, line: int) -> dict[str, Any]:
    """Return `row`, which was read from `text`. Raises TableError if it is not an object of Unicode text."""
    if not isinstance(row, dict):
        raise TableError(name, f"expected a JSON object with the columns as keys, got {shown(row)}", line)
    if "\\u" in text:  # only an escape can make a lone surrogate, which cannot be sent or written
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise TableError(name, "expected a JSON object of Unicode text, got half of a surrogate pair", line) from None
    return row


def _unusable(name: str, error: Exception, line: int) -> TableError:
    if isinstance(error, _Refused):
        return TableError(name, str(error), line)
    nested = isinstance(error, RecursionError)
    return TableError(name, f"not JSON: {'nested too deeply' if nested else 'a number has too many digits'}", line)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object. Raises _Refused for a repeated key."""
    row = dict(pairs)
    if len(row) != len(pairs):
        again = repeated(key for key, _ in pairs)
        raise _Refused(f"expected each key once, got {shown(again)} again")
    return row


def _number(text: str) -> float:
    """Return a number with a fraction or an exponent.

    Raises _Refused if it is too large, because it would become Infinity.
    """
    number = float(text)
    if math.isinf(number):
        raise _Refused(f"expected numbers of at most 1.8e308, got {text[:40]}")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_number)
