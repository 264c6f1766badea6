"""Rows of TSV, as people write it: a quote is a character, unless it is clear that it is not.

- If the header begins with a quote, the whole file is quoted as CSV is.
- Otherwise, a line with as many values as the header is a row of its own. In it, quotes are characters unless they enclose a whole
  value, as pandas and Excel write a value that has a quote in it.
- Any other line is read with the quotes of CSV, so that quoted values may contain tabs and line ends. So is a line whose last value
  opens a quote, if the next line is not a row of its own.
"""

from collections.abc import Iterator
from itertools import chain

from quickstudy.tables.csv_rows import Cells, csv_row, csv_rows


def tsv_rows(name: str, lines: Iterator[str], first: int = 1) -> Cells:
    """Yield the rows of TSV, the header first. Lines that are empty, or have only tabs, are left out.

    `first`: the number of the first line. Raises TableError as `csv_rows` does, for lines that are read like CSV.
    """
    number = first
    for header in lines:
        if header.lstrip("\t ").startswith('"'):
            yield from csv_rows(name, chain((header,), lines), "\t", number)
            return
        if not _is_blank(header):
            yield number, _raw(header)
            yield from _rows(name, lines, number + 1, len(_raw(header)))
            return
        number += 1


def _rows(name: str, lines: Iterator[str], number: int, width: int) -> Cells:
    waiting: list[str] = []  # lines that were read ahead
    while (line := waiting.pop() if waiting else next(lines, None)) is not None:
        if _is_blank(line):
            number += 1
            continue
        values = _raw(line)
        is_row = len(values) == width
        if is_row and _opens_quote(line):
            following = next(lines, None)
            if following is not None:
                waiting.append(following)
                is_row = _is_blank(following) or len(_raw(following)) == width
        if is_row:
            yield number, values
            number += 1
            continue
        ahead = iter(waiting)
        cells, read = csv_row(name, chain((line,), ahead, lines), "\t", number)
        waiting = list(ahead)
        yield number, cells
        number += read


def _is_blank(line: str) -> bool:
    return not line.strip("\t\r\n ")


def _raw(line: str) -> list[str]:
    return [_unquoted(value) for value in line.rstrip("\r\n").split("\t")]


def _unquoted(value: str) -> str:
    """Return the content of a value that is enclosed in quotes, else the value itself.

    A value is enclosed only if all quotes in its content are doubled.
    """
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    content = value[1:-1]
    return content.replace('""', '"') if '"' not in content.replace('""', "") else value


def _opens_quote(line: str) -> bool:
    """Return True if the last value of a line begins with a quote and does not end with one."""
    last = line.rstrip("\r\n").rpartition("\t")[2]
    return last.startswith('"') and _unquoted(last) == last
