"""`quickstudy adapters`: list, show, score, watch, pin and delete adapters."""

import dataclasses
import json
from datetime import datetime

import click

from quickstudy import Client, EndEvent, Event, Invalid, Score, StatusEvent, StepEvent
from quickstudy.commands.rows import format_option, open_rows, place_of, show_hints
from quickstudy.commands.service_options import as_json, failure_of, print_json, print_table, with_client
from quickstudy.multi_step import require_ready
from quickstudy.one_line import printable
from quickstudy.tables import Format


@click.group()
def adapters() -> None:
    """List, show, score, watch, pin and delete adapters."""


@adapters.command("list")
@click.option("--status", type=click.Choice(["queued", "running", "ready", "failed", "evicted", "expired"]))
@click.option("--tag", help="Only adapters with this tag.")
@click.option("--name", help="Only adapters with this name.")
@as_json
@with_client
def list_all(client: Client, status: str | None, tag: str | None, name: str | None, as_json: bool) -> None:
    """List adapters, newest first."""
    listed = list(client.adapters(status=status, tag=tag, name=name))  # type: ignore[arg-type]  # click has checked the status
    if as_json:
        print_json([dataclasses.asdict(adapter) for adapter in listed])
        return
    titles = ("adapter", "status", "name", "tags", "labels", "examples", "created")
    print_table(
        titles,
        [(a.adapter_id, a.status, a.name, ",".join(a.tags), len(a.labels), a.examples, _time(a.created_at)) for a in listed],
    )


@adapters.command()
@click.argument("adapter")
@as_json
@with_client
def show(client: Client, adapter: str, as_json: bool) -> None:
    """Show everything about ADAPTER."""
    fields = dataclasses.asdict(client.adapter(adapter))
    if as_json:
        print_json(fields)
        return
    for key, value in fields.items():
        shown = _time(value) if key in ("created_at", "expires_at") and value is not None else value
        click.echo(f"{key:<24}{printable(_in_words(shown))}")


@adapters.command()
@click.argument("adapter_ids", metavar="ADAPTER…", nargs=-1, required=True)
@with_client
def delete(client: Client, adapter_ids: tuple[str, ...]) -> None:
    """Delete the weights, record and examples of each ADAPTER."""
    for adapter in adapter_ids:
        client.delete(adapter)
        click.echo(f"{adapter} deleted")


@adapters.command()
@click.argument("adapter_ids", metavar="ADAPTER…", nargs=-1, required=True)
@with_client
def pin(client: Client, adapter_ids: tuple[str, ...]) -> None:
    """Protect each ADAPTER from expiry and eviction."""
    for adapter in adapter_ids:
        client.pin(adapter)
        click.echo(f"{adapter} pinned")


@adapters.command()
@click.argument("adapter_ids", metavar="ADAPTER…", nargs=-1, required=True)
@with_client
def unpin(client: Client, adapter_ids: tuple[str, ...]) -> None:
    """Let each ADAPTER expire again."""
    for adapter in adapter_ids:
        client.unpin(adapter)
        click.echo(f"{adapter} unpinned")


@adapters.command()
@click.argument("adapter")
@click.argument("file")
@click.option("--text-column", metavar="NAME", help="Column of the texts. Default: `text` or `input`.")
@click.option("--label-column", metavar="NAME", help="Column of the true labels. Default: `label`.")
@format_option
@as_json
@with_client
def score(
    client: Client,
    adapter: str,
    file: str,
    text_column: str | None,
    label_column: str | None,
    file_format: Format | None,
    as_json: bool,
) -> None:
    """Score ADAPTER's predictions on the labelled rows of FILE."""
    with open_rows(file, file_format, text_column, label_column) as rows:
        examples = rows.examples(text_column, label_column)
        source = rows.name
    show_hints(source, examples)
    try:
        result = client.score(adapter, [(text, label) for _, text, label in examples])
    except Invalid as error:
        raise failure_of(error, place_of(error, source, [line for line, _, _ in examples])) from None
    lines = [examples[i][0] for i in result.mistakes]
    if as_json:
        print_json({**dataclasses.asdict(result), "mistaken_lines": lines})
        return
    _show_score(result, source, lines)


def _show_score(result: Score, source: str, lines: list[int]) -> None:
    click.echo(f"{result.examples} examples, accuracy {result.accuracy:.1%}, macro F1 {result.macro_f1:.3f}\n")
    titles = ("label", "precision", "recall", "F1", "examples")
    by_label = sorted(result.labels.items())
    print_table(titles, [(label, score.precision, score.recall, score.f1, score.examples) for label, score in by_label])
    if lines:
        click.echo(f"\nwrong in {source}: lines {', '.join(map(str, lines))}")


@adapters.command()
@click.argument("adapter")
@as_json
@with_client
def events(client: Client, adapter: str, as_json: bool) -> None:
    """Print the events of ADAPTER's job until it ends. Exit with code 1 if the adapter is not ready then."""
    for event in client.events(adapter):
        if as_json:
            click.echo(json.dumps({"event": type(event).__name__.removesuffix("Event").lower(), **dataclasses.asdict(event)}))
        else:
            click.echo(_described(event))
        if isinstance(event, EndEvent):
            require_ready(event.adapter)


def _described(event: Event) -> str:
    match event:
        case StatusEvent(status=status, attempt=attempt):
            return f"{status}, attempt {attempt}"
        case StepEvent(step=step, support_loss=loss):
            return f"step {step}, support loss {loss:.4f}"
        case EndEvent(adapter=adapter):
            return f"end, {adapter.status}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def _in_words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(entry)}" for key, entry in value.items()) or "-"
    if isinstance(value, tuple):
        return ", ".join(map(_in_words, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
