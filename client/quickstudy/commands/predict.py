"""`quickstudy predict`: rows of a file → the same rows with a label and its probability."""

import csv
import io
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
from quickstudy.commands.rows import Format, Rows, UnreadableRows, format_option, opened
from quickstudy.commands.service_options import asks, failed

_PART_ROWS = 256
Output = Literal["csv", "jsonl"]
Entry = tuple[int, dict[str, Any]]


@click.command()
@click.argument("adapter", metavar="ADAPTER_OR_ALIAS")
@click.argument("file", required=False)
@click.option("--text", "texts", multiple=True, help="Instead of FILE; may be given more than once.")
@click.option("--text-column", metavar="NAME", help="Of the inputs; `text` or `input` where there is one of them.")
@format_option
@click.option("--top-k", type=click.IntRange(1), metavar="K", help="The K most probable labels, not only the first.")
@click.option("--output", type=click.Choice(["csv", "jsonl"]), help="jsonl for JSON Lines, else csv, where not said.")
@click.option("--json", "output", flag_value="jsonl", help="As --output jsonl.")
@asks
def predict(
    client: Client,
    adapter: str,
    file: str | None,
    texts: tuple[str, ...],
    text_column: str | None,
    chosen: Format | None,
    top_k: int | None,
    output: Output | None,
) -> None:
    """Label the rows of FILE (CSV, TSV or JSON Lines; - is standard input), and print them with a label and its probability."""
    if (file is None) == (not texts):
        raise click.UsageError("expected either FILE or --text")
    total = len(texts) if file is None else _count(file, chosen, text_column)
    with nullcontext(_given(texts)) if file is None else opened(file, chosen) as rows:
        column = rows.text_column(text_column)
        form: Output = output or ("jsonl" if rows.format == "jsonl" else "csv")
        write = _csv(rows, top_k or 1) if form == "csv" else _jsonl
        hidden = True if sys.stdout.isatty() else None  # among the rows on a terminal it would be noise
        with tqdm(total=total, unit="row", desc="predicting", disable=hidden) as bar:
            wanted = top_k if form == "jsonl" else top_k or 1
            for part, answer in _answered(client, adapter, rows, column, wanted):
                write(part, answer)
                bar.update(len(part))
            write([], ())  # of no rows, their columns at least


def _answered(client: Client, name: str, rows: Rows, column: str, top_k: int | None) -> Iterator[tuple[list[Entry], Predictions]]:
    """Part by part; all of one adapter, though an alias be moved meanwhile."""
    while part := list(islice(rows.entries, _PART_ROWS)):
        inputs = [rows.text(line, row, column) for line, row in part]
        try:
            answer = client.predict(name, inputs, top_k=top_k)
        except Invalid as error:
            raise failed(error, "" if error.row is None else f"{rows.name}, line {part[error.row][0]}: ") from None
        name = answer.adapter_id
        yield part, answer


def _given(texts: tuple[str, ...]) -> Rows:
    return Rows("--text", "csv", ("text",), ((i, {"text": text}) for i, text in enumerate(texts, start=1)))


def _count(file: str, chosen: Format | None, text_column: str | None) -> int | None:
    """Rows of a file, all of which are sound: what is wrong with the last one is told before the first one is sent. None for what
    can be read once only."""
    if file == "-" or not Path(file).is_file():
        return None
    with opened(file, chosen) as rows:
        column = rows.text_column(text_column)
        return sum(1 for line, row in rows.entries if rows.text(line, row, column))


def _csv(rows: Rows, top_k: int) -> Callable[[list[Entry], Sequence[Prediction]], None]:
    """The input's columns, `label` and `probability`; with more labels, `label_2` and so on. Where the input has one of these
    names, all of them begin with `predicted_`."""
    added = [name if k == 1 else f"{name}_{k}" for k in range(1, top_k + 1) for name in ("label", "probability")]
    if set(added) & set(rows.columns):
        added = [f"predicted_{name}" for name in added]
    if set(added) & set(rows.columns):
        raise UnreadableRows(f"{rows.name} has columns that the output would have twice: {', '.join(added)}; try --output jsonl")
    lines = [[*rows.columns, *added]]  # not before there is a first answer

    def write(part: list[Entry], answer: Sequence[Prediction]) -> None:
        for (line, row), prediction in zip(part, answer, strict=True):
            if row.keys() - set(rows.columns):
                new = ", ".join(sorted(row.keys() - set(rows.columns)))
                raise UnreadableRows(f"{rows.name}, line {line}: {new} is in no row before; try --output jsonl")
            own = [_cell(row.get(column, "")) for column in rows.columns]
            cells = [cell for label, p in _ranked(prediction) for cell in (label, f"{p:.6g}")]
            lines.append([*own, *cells, *[""] * (len(added) - len(cells))])
        _print_csv(lines)
        lines.clear()

    return write


def _jsonl(part: list[Entry], answer: Sequence[Prediction]) -> None:
    """Each row as it came, with `prediction`."""
    lines = []
    for (_, row), prediction in zip(part, answer, strict=True):
        found = {"label": prediction.label, "probability": prediction.probability, "probabilities": dict(_ranked(prediction))}
        lines.append(json.dumps({**row, "prediction": found}, ensure_ascii=False) + "\n")
    click.echo("".join(lines), nl=False)


def _ranked(prediction: Prediction) -> list[tuple[str, float]]:
    return sorted(prediction.probabilities.items(), key=lambda pair: -pair[1])


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _print_csv(lines: list[list[str]]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    click.echo(buffer.getvalue(), nl=False)
