"""Conversion of examples and inputs to JSON: pairs, mappings, data frames, NumPy scalars.

Neither pandas nor NumPy is imported: their objects are known by their methods.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from quickstudy.errors import Invalid
from quickstudy.one_line import shown, some

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
    return [_sendable(value, f"{field}[{number}]") for number, value in enumerate(inputs)]


def _rows(examples: Examples, field: str) -> Iterator[Any]:
    if hasattr(examples, "to_dict") and hasattr(examples, "columns"):
        return iter(examples.to_dict("records"))
    if isinstance(examples, str | bytes | Mapping) or not isinstance(examples, Iterable):
        raise _invalid(field, f"expected a list in which each example is {_EXPECTED}", examples)
    return iter(examples)


def _example(row: Any, field: str) -> dict[str, Any]:
    text, label = _pair(row, field)
    return {"input": _sendable(text, f"{field}.input"), "label": _sendable(label, f"{field}.label")}


def _pair(row: Any, field: str) -> tuple[Any, Any]:
    """Return the text and the label of one example."""
    names = getattr(row, "_fields", ())  # of a named tuple
    if names and _LABEL in names:
        row = dict(zip(names, row, strict=True))
    if isinstance(row, Mapping):
        texts = [name for name in _TEXTS if name in row]
        if len(texts) != 1 or _LABEL not in row:
            keys = some([str(key) for key in row])
            raise _invalid(field, f"expected {_EXPECTED}, got the keys {keys}" if keys else f"expected {_EXPECTED}", row)
        return row[texts[0]], row[_LABEL]
    if isinstance(row, str | bytes | set | frozenset) or not hasattr(row, "__len__") or len(row) != 2:
        raise _invalid(field, f"expected {_EXPECTED}", row)
    text, label = row
    return text, label


def _sendable(value: Any, field: str) -> Any:
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
        raise _invalid(field, "expected a text", value) from None
    return value


def _invalid(field: str, problem: str, got: Any) -> Invalid:
    """Return the error of a value that is not sent, in the form of the service's own errors."""
    detail = f"{field}: {problem}" if ", got " in problem else f"{field}: {problem}, got {shown(got)}"
    errors = [{"field": field, "expected": problem.removeprefix("expected ").partition(", got ")[0], "got": shown(got)}]
    return Invalid(None, {"title": "Not sent", "detail": detail, "errors": errors})
