"""Conversion of examples and inputs to JSON: pairs, mappings, data frames, NumPy scalars.

Neither pandas nor NumPy is imported: their objects are known by their methods.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

from quickstudy.errors import Invalid
from quickstudy.one_line import shown, some
from quickstudy.tables.repeats import repeated

_TEXTS, _LABEL = ("input", "text"), "label"
_EXPECTED = "a pair (text, label), or a mapping or row with 'text' or 'input' and 'label'"


class DataFrame(Protocol):
    """A data frame of pandas. Its columns are `text` or `input`, and `label`."""

    @property
    def columns(self) -> Any: ...
    def to_dict(self, orient: Any) -> Any: ...


Examples = Iterable[Sequence[Any] | Mapping[str, Any]] | DataFrame
"""Labelled examples: pairs (text, label), mappings such as `{"text": …, "label": …}`, rows of `DataFrame.itertuples()`, or a data
frame. Further keys and columns are ignored."""


def examples_as_json(examples: Examples, field: str) -> list[dict[str, Any]]:
    """Return examples as the service takes them, `{"input": …, "label": …}`.

    `field`: the name of the list in the request, for errors. Raises Invalid, with the row, for an example of another form and for a
    value that JSON cannot represent. The service checks everything else.
    """
    return [_example(row, f"{field}[{number}]") for number, row in enumerate(_rows(examples, field))]


def inputs_as_json(inputs: Sequence[Any], field: str) -> list[Any]:
    """Return inputs as the service takes them. For `field` and errors see `examples_as_json`."""
    return [_sendable(value, f"{field}[{number}]") for number, value in enumerate(list_of_inputs(inputs, field))]


def option_as_json(value: Any, field: str) -> Any:
    """Return the value of an option as JSON can represent it. Raises Invalid for any other value."""
    return _sendable(value, field, "a value of JSON")


def tags_as_json(tags: Any) -> list[Any]:
    """Return tags as the service takes them. Raises Invalid for a text, which is no list of its letters."""
    if isinstance(tags, str | bytes | Mapping) or not isinstance(tags, Iterable):
        raise _invalid("tags", "expected a list of texts", tags)
    return [_sendable(tag, f"tags[{number}]") for number, tag in enumerate(tags)]


def list_of_inputs(inputs: Any, field: str) -> list[Any]:
    """Return inputs as a list. Raises Invalid for a text, a mapping or a data frame."""
    if isinstance(inputs, str | bytes | bytearray | Mapping) or hasattr(inputs, "columns"):
        columns = [name for name in _TEXTS if name in getattr(inputs, "columns", ())]
        hint = f'; did you mean frame["{columns[0]}"]' if columns else ""
        got = f"a {type(inputs).__name__}" if hasattr(inputs, "columns") else shown(inputs)
        raise _invalid(field, f"expected a list of inputs, got {got}{hint}", inputs)
    try:
        iterator = iter(inputs)
    except TypeError:  # also of an array without dimensions, which only looks as if it could be iterated over
        raise _invalid(field, "expected a list of inputs", inputs) from None
    return list(iterator)


def _rows(examples: Examples, field: str) -> Iterator[Any]:
    try:
        if hasattr(examples, "to_dict") and hasattr(examples, "columns"):
            return _rows_of_frame(cast(DataFrame, examples), field)
        if not isinstance(examples, str | bytes | Mapping) and isinstance(examples, Iterable):
            return iter(examples)
    except TypeError:  # `to_dict` of another library, or an array without dimensions
        pass
    raise _invalid(field, f"expected a list in which each example is {_EXPECTED}", examples)


def _rows_of_frame(frame: DataFrame, field: str) -> Iterator[Any]:
    """Return the rows of a data frame.

    Raises Invalid for a column of ours that occurs twice, and for a missing value in one. `to_dict` would keep one of the two
    columns, and it gives None for a value that is missing.
    """
    ours = [name for name in frame.columns if isinstance(name, str) and name in (*_TEXTS, _LABEL)]
    if (again := repeated(ours)) is not None:
        raise _invalid(field, f"expected different column names, got {shown(again)} more than once", frame)
    rows = list(frame.to_dict("records"))
    for number, row in enumerate(rows):
        if (missing := next((name for name in ours if row[name] is None), None)) is not None:
            place = f"{field}[{number}].{'label' if missing == _LABEL else 'input'}"
            raise _invalid(place, "expected a text, got a missing value", None)
    return iter(rows)


def _example(row: Any, field: str) -> dict[str, Any]:
    text, label = _pair(row, field)
    return {"input": _sendable(text, f"{field}.input"), "label": _sendable(label, f"{field}.label")}


def _pair(row: Any, field: str) -> tuple[Any, Any]:
    """Return the text and the label of one example."""
    row = _by_name(_without_index(row), field)
    if isinstance(row, Mapping):
        texts = [name for name in _TEXTS if name in row]
        if len(texts) != 1 or _LABEL not in row:
            keys = some([str(key) for key in row])
            raise _invalid(field, f"expected {_EXPECTED}, got the keys {keys}" if keys else f"expected {_EXPECTED}", row)
        return row[texts[0]], row[_LABEL]
    try:
        if not isinstance(row, str | bytes | set | frozenset) and not hasattr(row, "columns") and len(row) == 2:
            text, label = row
            return text, label
    except (TypeError, ValueError):  # it has no length, cannot be iterated over, or states a wrong length
        pass
    if isinstance(row, list | tuple):
        raise _invalid(field, f"expected {_EXPECTED}, got a {type(row).__name__} of length {len(row)}", row)
    raise _invalid(field, f"expected {_EXPECTED}", row)


def _without_index(row: Any) -> Any:
    """Return the row in a pair (index, row), and anything else as it is.

    `DataFrame.iterrows()` yields such pairs.
    """
    if type(row) is tuple and len(row) == 2 and not isinstance(row[1], str):
        names = row[1] if isinstance(row[1], Mapping) else _names_and_values(row[1])[0]
        if any(isinstance(name, str) and name == _LABEL for name in names):
            return row[1]
    return row


def _by_name(row: Any, field: str) -> Any:
    """Return a row whose values have names as a mapping, and anything else as it is.

    Raises Invalid for a repeated name.
    Such rows are a Series of pandas, a row of `sqlite3`, a record of NumPy and a named tuple. The order of their values says
    nothing. A named tuple without any of our names remains a pair, because a pair of a program's own has names too.
    """
    if isinstance(row, Mapping):
        return row
    names, values = _names_and_values(row)
    if not any(isinstance(name, str) for name in names) or len(names) != len(values):
        return row  # a Series without an index of its own has numbers as names
    ours = [name for name in names if isinstance(name, str) and name in (*_TEXTS, _LABEL)]
    if len(set(ours)) != len(ours):
        raise _invalid(field, f"expected {_EXPECTED}, got the keys {some([str(name) for name in names])}", row)
    if not ours and isinstance(row, tuple):
        return row
    return dict(zip(names, values, strict=True))


def _names_and_values(row: Any) -> tuple[list[Any], list[Any]]:
    """Return the names and the values of a row in order. Both are empty if it has no names."""
    fields = getattr(row, "_fields", None)
    index = getattr(row, "index", None)
    try:
        if fields is None:
            fields = getattr(getattr(row, "dtype", None), "names", None)
        if fields is None and index is not None and not callable(index):
            fields = index
        if fields is None and callable(keys := getattr(row, "keys", None)):
            names = list(keys())
            return names, [row[name] for name in names]
        return ([], []) if fields is None else (list(fields), list(row))
    except (TypeError, LookupError):  # a class, or attributes that only have these names
        return [], []


def _sendable(value: Any, field: str, expected: str = "a text") -> Any:
    """Return a value that JSON can represent, NumPy scalars as Python's own. Raises Invalid."""
    if hasattr(value, "dtype") and hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, str):
        value = str(value)  # NumPy has a kind of text too
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise _invalid(field, "expected Unicode text, got half of a surrogate pair", value) from None
    except (TypeError, ValueError, RecursionError):
        raise _invalid(field, f"expected {expected}", value) from None
    return value


def _invalid(field: str, problem: str, got: Any) -> Invalid:
    """Return the error of a value that is not sent, in the form of the service's own errors."""
    detail = f"{field}: {problem}" if ", got " in problem else f"{field}: {problem}, got {shown(got)}"
    errors = [{"field": field, "expected": problem.removeprefix("expected ").partition(", got ")[0], "got": shown(got)}]
    return Invalid(None, {"title": "Not sent", "detail": detail, "errors": errors})
