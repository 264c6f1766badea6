"""The texts and labels of rows: what can be one, and what only looks like one."""

import unicodedata

from quickstudy.one_line import shown

_MISSING = frozenset({"nan", "NaN", "NAN", "<NA>", "NaT", "#N/A"})
"""What pandas and Excel write for a missing value. Words that may be labels, such as `none` and `NA`, are not among them."""


def is_blank(text: str) -> bool:
    """Return True if a text has only white space and invisible characters, such as U+200B."""
    return all(letter.isspace() or unicodedata.category(letter) in ("Cc", "Cf") for letter in text)


def text_problem(value: object, column: str) -> str | None:
    """Return what is wrong with `value` as a text, or None. `column`: the name of its column."""
    if isinstance(value, str):
        return f"expected a text as {shown(column)}, got {_blank(value)}" if is_blank(value) else None
    if isinstance(value, dict):
        return f"expected a text as {shown(column)}, got an object: write one object for each row, in pandas with orient='records'"
    return f"expected a text as {shown(column)}, got {shown(value)}"


def label_problem(value: object, column: str) -> str | None:
    """Return what is wrong with `value` as a label, or None. `column`: the name of its column.

    A number of JSON is not a label: it may be a class that was counted, or a measurement. In CSV and TSV every value is a text.
    """
    if isinstance(value, str):
        if value.strip() in _MISSING:
            return f"expected a label as {shown(column)}, got {shown(value)}, which stands for a missing value"
        return f"expected a label as {shown(column)}, got {_blank(value)}" if is_blank(value) else None
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
        return f"expected a label as {shown(column)}, got the number {shown(value)}: write it in quotes if it is a class"
    if isinstance(value, list):
        return f"expected a label as {shown(column)}, got a list: an example has one label"
    return f"expected a label as {shown(column)}, got {shown(value)}"


def _blank(value: str) -> str:
    return "an empty value" if not value else "invisible characters" if value.strip() else "white space"
