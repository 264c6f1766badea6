"""The format of a table, by its name and its beginning, and the separator of a CSV file."""

import re
from collections.abc import Collection
from pathlib import PurePath
from typing import Literal

from quickstudy.tables.errors import TableError

Format = Literal["csv", "tsv", "jsonl", "json"]
FORMATS: tuple[Format, ...] = ("csv", "tsv", "jsonl", "json")
"""CSV, TSV, JSON Lines (an object in each line), and one JSON array of objects."""
_TABLES: dict[str, Format] = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv"}
_JSON = (".json", ".jsonl", ".ndjson")
_SEPARATORS = (",", ";", "\t")
_STATED = re.compile(r"""(?i)(?P<quote>"?)sep=(?P<separator>[,;|\t]|\\t)(?P=quote)(?=[\r\n]|\Z)""")
NAMES = {",": "commas", ";": "semicolons", "\t": "tabs"}


def format_of(name: str, sample: str) -> Format:
    """Return the format of a file by the ending of its name, or else by its content.

    The ending may have any case and be followed by `.gz`. JSON that begins with `[` is an array, whatever the ending. A table with
    a tab and no comma or semicolon in its header is TSV.
    `sample`: the beginning of the content.
    """
    suffix = next((part.lower() for part in reversed(PurePath(name).suffixes) if part.lower() != ".gz"), "")
    if suffix in _TABLES:
        return _TABLES[suffix]
    beginning = sample.lstrip()[:1]
    if suffix in _JSON or beginning in ("{", "["):
        return "json" if beginning == "[" else "jsonl"
    header = _header(sample)
    return "tsv" if _found_in(header) == ["\t"] else "csv"


def separator_of(name: str, sample: str, wanted: Collection[str]) -> str:
    """Return the separator of a CSV file.

    It is the one of comma, semicolon and tab that the header has outside quotes; if there are several, the one that makes a column
    named as one of `wanted`. Raises TableError if that leaves a choice. A header without any is a single column. `sample`: the
    beginning of the content.
    """
    header = _header(sample)
    found = _found_in(header)
    if len(found) > 1:
        names = {separator: {cell.strip().strip('"') for cell in header.strip().split(separator)} for separator in found}
        found = [separator for separator in found if names[separator] & {*wanted}] or found
    if len(found) > 1:
        both = " and ".join(NAMES[separator] for separator in found)
        raise TableError(name, f"expected one separator in the header, got {both}: quote the names that contain one", 1)
    return found[0] if found else ","


def stated_separator(sample: str) -> str | None:
    """Return the separator that Excel states in a first line such as `sep=;`, or None.

    The line may be in quotes, and a tab may be written as `\\t`.
    """
    found = _STATED.match(sample)
    return found["separator"].replace("\\t", "\t") if found else None


def _header(sample: str) -> str:
    """Return the first line that is not empty, up to its end outside quotes."""
    content, quoted = sample.lstrip("\r\n"), False
    for position, letter in enumerate(content):
        if letter == '"':
            quoted = not quoted
        elif letter in "\r\n" and not quoted:
            return content[:position]
    return content


def _found_in(header: str) -> list[str]:
    """Return the separators that a header has outside quotes."""
    outside = "".join(header.split('"')[::2])
    return [separator for separator in _SEPARATORS if separator in outside]
