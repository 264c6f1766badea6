"""Examples that are well formed and yet probably not what their author meant."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quickstudy.one_line import one_line, shown
from quickstudy.tables.errors import TableError

Example = tuple[int, str, str]
"""(line, text, label)."""
MOST_HINTS = 5
_BETWEEN_LABELS = (";", "|", ",", "/", "&", "+")
_BETWEEN_VALUES = (",", ";", "\t")
_BRACKETS = {"[": "]", "(": ")", "{": "}"}


@dataclass(frozen=True)
class Hint:
    """A remark about one line of a file, which the reader of the file may ignore."""

    line: int
    message: str


def check_rows_not_swallowed(name: str, examples: Sequence[Example]) -> None:
    """Raise TableError for a quoted value that has swallowed rows, with the line where it begins.

    A value has if at least two of its inner lines end or begin as rows do: with a separator and a label of the other examples.
    """
    labels = {label for _, _, label in examples if "\n" not in label and "\r" not in label}
    for line, text, label in examples:
        for value in (text, label):
            inner = value.splitlines()[1:]
            if len(inner) >= 2 and sum(_is_row(part, labels) for part in inner) >= 2:
                problem = f"a quote opens here, and its value runs over the next {len(inner)} lines, which are rows"
                raise TableError(name, problem, line)


def hints_about(examples: Sequence[Example]) -> list[Hint]:
    """Return hints about labels that look like several labels in one value.

    A label looks so if it is written as a list, or if its parts around a separator are labels of other examples. At most
    MOST_HINTS hints are returned; the last one says how many labels more look so.
    """
    labels = {label for _, _, label in examples}
    first_lines: dict[str, int] = {}
    for line, _, label in examples:
        first_lines.setdefault(label, line)
    hints = [
        Hint(line, one_line(f"the label {shown(label)} looks like several labels; an example has one label"))
        for label, line in first_lines.items()
        if _is_list(label) or any(_are_labels(label.split(separator), labels) for separator in _BETWEEN_LABELS)
    ]
    if len(hints) > MOST_HINTS:
        rest = hints[MOST_HINTS - 1 :]
        hints[MOST_HINTS - 1 :] = [Hint(rest[0].line, f"{rest[0].message}; {len(rest) - 1} further labels look so too")]
    return hints


def _is_row(line: str, labels: set[str]) -> bool:
    return any(
        separator in line and (_label_at(line.rpartition(separator)[2], labels) or _label_at(line.partition(separator)[0], labels))
        for separator in _BETWEEN_VALUES
    )


def _label_at(value: str, labels: set[str]) -> bool:
    return value.strip().strip('"') in labels


def _are_labels(parts: list[str], labels: set[str]) -> bool:
    return len(parts) > 1 and all(part.strip() in labels for part in parts)


def _is_list(label: str) -> bool:
    """Return True if a label is written as a list of Python or JSON, such as `['a', 'b']`."""
    content = label.strip()
    if len(content) < 2 or _BRACKETS.get(content[0]) != content[-1]:
        return False
    return any(_quoted(part) for part in _parts(content[1:-1]))


def _parts(content: str) -> Iterator[str]:
    return (part.strip() for part in content.split(","))


def _quoted(part: str) -> bool:
    return len(part) >= 2 and part[0] == part[-1] and part[0] in "'\""
