"""`quickstudy predict`: print the rows of a file with a predicted label and its probability."""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import click
from tqdm import tqdm

from quickstudy import Client, Invalid, Prediction, Predictions
from quickstudy.commands.rows import Rows, format_option, open_rows, place_of
from quickstudy.commands.service_options import failure_of, with_client
from quickstudy.one_line import shown, some
from quickstudy.tables import Format, Table, TableError

_PART_ROWS = 256
Output = Literal["csv", "jsonl"]
Entry = tuple[int, dict[str, Any]]


@click.command()
@click.argument("adapter", metavar="ADAPTER_OR_ALIAS")
@click.argument("file", required=False)
@click.option("--text", "texts", multiple=True, help="Text to label, instead of FILE; may be given more than once.")
@click.option("--text-column", metavar="NAME", help="Column of the inputs. Default: `text` or `input`.")
@format_option
@click.option("--top-k", type=click.IntRange(1), metavar="K", help="Print the K most probable labels, not only the first.")
@click.option(
    "--output", type=click.Choice(["csv", "jsonl"]), help="Output format. Default: jsonl if the input is JSON, otherwise csv."
)
@click.option("--json", "output", flag_value="jsonl", help="Short for --output jsonl.")
@with_client
def predict(
    client: Client,
    adapter: str,
    file: str | None,
    texts: tuple[str, ...],
    text_column: str | None,
    file_format: Format | None,
    top_k: int | None,
    output: Output | None,
) -> None:
    """Print the rows of FILE with a predicted label and its probability.

    FILE is CSV, TSV, JSON Lines or a JSON array, also packed with gzip; - is standard input.
    """
    if (file is None) == (not texts):
        raise click.UsageError(f"expected either FILE or --text, got {'neither' if file is None else 'both'}")
    total = len(texts) if file is None else _count_rows(file, file_format, text_column)
    with nullcontext(_rows_of_texts(texts)) if file is None else open_rows(file, file_format, text_column) as rows:
        column = rows.text_column(text_column)
        output_format: Output = output or ("jsonl" if rows.format in ("json", "jsonl") else "csv")
        write = _csv_writer(rows, top_k or 1) if output_format == "csv" else _jsonl_writer(rows)
        hide_bar = True if sys.stdout.isatty() else None  # on a terminal, the bar and the printed rows would mix
        with tqdm(total=total, unit="row", desc="predicting", disable=hide_bar) as bar:
            labels_per_row = top_k if output_format == "jsonl" else top_k or 1
            for part, answer in _predict_in_parts(client, adapter, rows, column, labels_per_row):
                write(part, answer)
                bar.update(len(part))
            write([], ())  # prints the header if there were no rows


def _predict_in_parts(
    client: Client, name: str, rows: Rows, column: str, top_k: int | None
) -> Iterator[tuple[list[Entry], Predictions]]:
    """Predict the rows in parts, and yield each part with its predictions.

    The same adapter predicts all parts, even if `name` is an alias that moves in between.
    """
    entries = rows.checked_entries(column)
    while part := list(islice(entries, _PART_ROWS)):
        inputs = [rows.text(line, row, column) for line, row in part]
        try:
            answer = client.predict(name, inputs, top_k=top_k)
        except Invalid as error:
            raise failure_of(error, place_of(error, rows.name, [line for line, _ in part])) from None
        name = answer.adapter_id
        yield part, answer


def _rows_of_texts(texts: tuple[str, ...]) -> Rows:
    return Rows(Table("--text", "csv", ("text",), ((i, {"text": text}) for i, text in enumerate(texts, start=1))))


def _count_rows(file: str, file_format: Format | None, text_column: str | None) -> int | None:
    """Count the rows of a file. Return None for input that can be read only once, such as a pipe.

    Because this reads all rows, a malformed or swallowed row is reported before anything is sent. Raises TableError.
    """
    if file == "-" or not Path(file).is_file():
        return None
    with open_rows(file, file_format, text_column) as rows:
        column = rows.text_column(text_column)
        return sum(1 for line, row in rows.checked_entries(column) if rows.text(line, row, column))


def _csv_writer(rows: Rows, top_k: int) -> Callable[[list[Entry], Sequence[Prediction]], None]:
    """Return a function that prints a part of the rows as CSV. Its first call also prints the header.

    The columns are those of the input, then `label`, `probability`, `label_2`, `probability_2` and so on. If the input has a column
    with one of these names, all added columns get the prefix `predicted_`. Raises TableError if the input also has a column
    with one of the prefixed names.
    """
    names = [name if k == 1 else f"{name}_{k}" for k in range(1, top_k + 1) for name in ("label", "probability")]
    added = _added(rows, names, "; try --output jsonl")
    lines = [[*rows.columns, *added]]  # the header is printed only with the first answer

    def write(part: list[Entry], answer: Sequence[Prediction]) -> None:
        for (line, row), prediction in zip(part, answer, strict=True):
            if row.keys() - set(rows.columns):
                new = some(sorted(row.keys() - set(rows.columns)))
                raise TableError(rows.name, f"expected the keys of the first row, got also {new}; try --output jsonl", line)
            input_cells = [_cell(row.get(column, "")) for column in rows.columns]
            cells = [cell for label, p in _ranked(prediction) for cell in (label, f"{p:.6g}")]
            lines.append([*input_cells, *cells, *[""] * (len(added) - len(cells))])
        _print_csv(lines)
        lines.clear()

    return write


def _jsonl_writer(rows: Rows) -> Callable[[list[Entry], Sequence[Prediction]], None]:
    """Return a function that prints each row of a part as a JSON line.

    A line has the row as it was read, and the added key `prediction`. If the input has that key, the added one is
    `predicted_prediction`. Raises TableError if the input has that one too.
    """
    (added,) = _added(rows, ["prediction"], "")

    def write(part: list[Entry], answer: Sequence[Prediction]) -> None:
        lines = []
        for (line, row), prediction in zip(part, answer, strict=True):
            if added in row:
                raise TableError(rows.name, f"expected no key {shown(added)}, which the first row does not have", line)
            result = {"label": prediction.label, "probability": prediction.probability, "probabilities": dict(_ranked(prediction))}
            lines.append(json.dumps({**row, added: result}, ensure_ascii=False) + "\n")
        click.echo("".join(lines), nl=False)

    return write


def _added(rows: Rows, names: list[str], advice: str) -> list[str]:
    """Return the names of the output's own columns.

    They are `names`, with the prefix `predicted_` if the input has one of them. Raises TableError, whose message ends with
    `advice`, if the input also has one of the prefixed names.
    """
    added = [f"predicted_{name}" for name in names] if set(names) & set(rows.columns) else names
    if set(added) & set(rows.columns):
        raise TableError(rows.name, f"expected no column named as one of the output's, {some(added)}{advice}")
    return added


def _ranked(prediction: Prediction) -> list[tuple[str, float]]:
    return sorted(prediction.probabilities.items(), key=lambda pair: -pair[1])


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class _UnixLines:
    """The lines of a CSV file, which end in `\\n`.

    The writer has to end them in `\\r\\n`, or it would not quote a lone `\\r`.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        self.lines.append(line.removesuffix("\r\n") + "\n")


def _print_csv(rows: list[list[str]]) -> None:
    output = _UnixLines()
    csv.writer(output, lineterminator="\r\n").writerows(rows)
    click.echo("".join(output.lines), nl=False)
