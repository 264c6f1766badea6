"""Text for people, made safe to print: one short line without characters that control a terminal."""

import math
from os import PathLike

MOST = 280
"""The largest number of characters of a line. With a prefix such as `error: ` it stays below 300."""
_HEAD = 190
_VALUE = 80
_CONTAINERS = {"list": "a list", "tuple": "a tuple", "dict": "an object"}
_MISSING = ("NAType", "NaTType")  # of pandas, which need not be installed
_JOINERS = "\u200c\u200d"  # zero-width (non-)joiners, which emoji and several scripts need and no terminal obeys


def one_line(text: object) -> str:
    """Return `str(text)` as one line of at most 280 characters.

    White space becomes single spaces, and characters that cannot be printed, such as terminal escapes, become "�". A longer text
    is cut in the middle, because a message often ends with the reason.
    """
    content = str(text)
    if len(content) > 8 * MOST:  # the rest would be cut anyway
        content = f"{content[: 4 * MOST]}…{content[-4 * MOST :]}"
    line = printable(" ".join(content.split()))
    return line if len(line) <= MOST else f"{line[:_HEAD].rstrip()}…{line[_HEAD + 1 - MOST :].lstrip()}"


def printable(text: str) -> str:
    """Return a text in which characters that cannot be printed, such as terminal escapes, are "�"."""
    return "".join(letter if letter.isprintable() or letter in _JOINERS else "�" for letter in text)


def shown(value: object, most: int = _VALUE) -> str:
    """Return a value from a file or a caller for a message: a text in quotes, cut to `most` characters.

    A character that cannot be printed counts as long as its escape. Containers are only named, because their content may be long
    or nested deeply.
    """
    if value is None:
        return "nothing"
    if isinstance(value, str):
        short = value[:most]
        while len(repr(short)) > most + 2:  # at most `most` times
            short = short[:-1]
        return repr(value) if short == value else f"{short!r}…"
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    if type(value).__name__ in _MISSING:
        return "a missing value"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value) if value.bit_length() < 3 * most else "a number with many digits"
    if isinstance(value, float):
        return repr(value)
    return _CONTAINERS.get(type(value).__name__) or f"a value of type {type(value).__name__[:most]}"


def shown_path(path: str | PathLike[str], most: int = 120) -> str:
    """Return a file's name for a message. If it is long, only its end."""
    name = str(path)
    return name if len(name) <= most else f"…{name[-most:]}"


def some(names: "list[str] | tuple[str, ...]", most: int = 6) -> str:
    """Return the first few of `names` in quotes, separated by commas, and how many more there are."""
    listed = ", ".join(shown(name, 30) for name in names[:most])
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed
