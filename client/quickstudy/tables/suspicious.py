"""Examples that are well formed and yet probably not what their author meant."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quickstudy.one_line import one_line, shown
from quickstudy.tables.errors import TableError

Example = tuple[int, str, str]
"""(line, text, label)."""
MOST_HINTS = 5
_BETWEEN_LABELS = (";", "|", ",", "/", "&", "+")
_BRACKETS = {"[": "]", "(": ")", "{": "}"}


@dataclass(frozen=True)
class Hint:
    """A remark about one line of a file, which the reader of the file may ignore."""

    line: int
    message: str


@dataclass(frozen=True)
class Layout:
    """The separator of a CSV or TSV file, and its whole header, with columns that have no name."""

    separator: str
    header: tuple[str, ...]


def check_rows_not_swallowed(name: str, examples: Sequence[Example], layout: Layout, text: str, label: str) -> None:
    """Raise TableError for a quoted value that has swallowed rows, with the line where it begins.

    A value has if all its lines but the last, and at least two, are rows as the header and the labels make them. Its first line is
    the rest of the row that it begins in. `text` and `label`: the names of the columns.
    """
    labels = {each for _, _, each in examples if "\n" not in each and "\r" not in each}
    label_at = layout.header.index(label)
    columns = (layout.header.index(text), label_at)
    for line, *values in examples:
        for column, value in zip(columns, values, strict=True):
            lines = value.splitlines() if "\n" in value or "\r" in value else []
            if len(lines) < 3:
                continue
            rest = [line_.split(layout.separator) for line_ in lines[:-1]]
            rest[0] = [""] * column + rest[0]  # the values before the one that the quote opens
            if label_at < column:
                rest[0][label_at] = next(iter(labels), "")
            if all(_is_row(cells, len(layout.header), label_at, labels) for cells in rest):
                problem = f"a quote opens here, and its value runs over the next {len(lines) - 1} lines, which are rows"
                raise TableError(name, problem, line)


def check_rows_not_torn(name: str, examples: Sequence[Example], layout: Layout, text: str, label: str) -> None:
    """Raise TableError for a quoted value of TSV that was torn into rows, with its first line.

    A value may have been if a text opens a quote that a text of a later row closes. Then the labels from the one to the other are
    parts of the value, except for that of the first row or of the last one. If no other row has any of these labels, the rows are
    refused; otherwise both quotes are characters of their texts.
    """
    counts = Counter(each for _, _, each in examples)
    label_first = layout.header.index(label) < layout.header.index(text)
    opened: int | None = None
    for number, (_, value, _) in enumerate(examples):
        if value.replace('""', "").count('"') == 1:
            if value.startswith('"'):
                opened = number
            elif opened is not None and value.endswith('"'):
                labels = [each for _, _, each in examples[opened : number + 1]]
                doubtful = Counter(labels[1:] if label_first else labels[:-1])
                if all(count == counts[each] for each, count in doubtful.items()):
                    closing = f"may close in line {examples[number][0]}: quote every value of the file, or double the two quotes"
                    raise TableError(name, f"a quote opens a value here and {closing} in values of their own", examples[opened][0])
                opened = None


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


def _is_row(cells: list[str], width: int, label_at: int, labels: set[str]) -> bool:
    """Return True if the parts of a line are a row: their number is right, and one is a label.

    No value after the first begins with a space, as it does after a comma in prose, unless it is a label that does.
    """
    if len(cells) != width or cells[label_at] not in labels:
        return False
    return not any(cell.startswith(" ") for position, cell in enumerate(cells) if position != label_at)


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
