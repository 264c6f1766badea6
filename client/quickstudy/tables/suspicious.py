"""Examples that are well formed and yet probably not what their author meant."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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


class RowChecks:
    """The search for values that swallowed rows, and in TSV for those that were torn into rows.

    It goes along while rows are read. `text` and `label`: the names of the columns. Call `add` with every row, and then
    `raise_if_found`. Only rows in doubt are kept.
    """

    def __init__(self, name: str, layout: Layout, text: str, label: str, *, torn: bool) -> None:
        self._name, self._layout, self._text, self._label, self._torn = name, layout, text, label, torn
        self._label_at = layout.header.index(label)
        self._label_first = self._label_at < layout.header.index(text)
        self._labels = Counter[str]()
        self._long: list[tuple[int, int, str]] = []  # (line, column, value), of values with several lines
        self._opened: int | None = None
        self._between = Counter[str]()  # labels since a text that opens a quote
        self._pairs: list[tuple[int, int, Counter[str]]] = []  # (line that opens, line that closes, labels in between)

    def add(self, line: int, row: Mapping[str, str]) -> None:
        """Note a row, which begins in `line`."""
        label = row[self._label]
        self._labels[label] += 1
        for column, name in enumerate(self._layout.header):
            value = row.get(name, "")  # columns without a name are left out
            if ("\n" in value or "\r" in value) and len(value.splitlines()) > 2:
                self._long.append((line, column, value))
        if self._torn:
            self._add_quotes(line, row[self._text], label)

    def _add_quotes(self, line: int, text: str, label: str) -> None:
        """Note a text that opens a quote, and a later one that closes it, with the labels in between.

        These are parts of the value, except for that of the first row or of the last one.
        """
        quotes = text.replace('""', "").count('"')
        if quotes == 1 and text.startswith('"'):
            self._opened, self._between = line, Counter() if self._label_first else Counter([label])
            return
        closes = quotes == 1 and text.endswith('"')
        if self._opened is not None and (self._label_first or not closes):
            self._between[label] += 1
        if self._opened is not None and closes:
            self._pairs.append((self._opened, line, self._between))
            self._opened = None

    def raise_if_found(self) -> None:
        """Raise TableError for the first value that has swallowed rows or was torn.

        The error has the line where it begins. A value has swallowed rows if all its lines but the last, and at least two, are rows
        as the header and the labels make them. Its first line is the rest of the row that it begins in. A value was torn if no
        other row has any of the labels between a text that opens a quote and one that closes it; otherwise both quotes are
        characters of their texts.
        """
        labels = {label for label in self._labels if "\n" not in label and "\r" not in label}
        for line, column, value in self._long:
            lines = value.splitlines()
            rest = [line_.split(self._layout.separator) for line_ in lines[:-1]]
            rest[0] = [""] * column + rest[0]  # the values before the one that the quote opens
            if self._label_at < column:
                rest[0][self._label_at] = next(iter(labels), "")
            if all(_is_row(cells, len(self._layout.header), self._label_at, labels) for cells in rest):
                problem = f"a quote opens here, and its value runs over the next {len(lines) - 1} lines, which are rows"
                raise TableError(self._name, problem, line)
        for line, closing, doubtful in self._pairs:
            if all(count == self._labels[label] for label, count in doubtful.items()):
                advice = f"may close in line {closing}: quote every value of the file, or double the two quotes"
                raise TableError(self._name, f"a quote opens a value here and {advice} in values of their own", line)


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
