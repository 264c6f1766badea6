"""`quickstudy adapters`: what a service has, one by one."""

import dataclasses
import json
from datetime import datetime

import click

from quickstudy import Client, EndEvent, Event, Invalid, Score, StatusEvent, StepEvent
from quickstudy.commands.rows import Format, format_option, opened
from quickstudy.commands.service_options import as_json, asks, failed, plain, print_json, print_table
from quickstudy.multi_step import ready


@click.group()
def adapters() -> None:
    """What the service has, and what becomes of it."""


@adapters.command("list")
@click.option("--status", type=click.Choice(["queued", "running", "ready", "failed", "evicted", "expired"]))
@click.option("--tag")
@click.option("--name")
@as_json
@asks
def list_all(client: Client, status: str | None, tag: str | None, name: str | None, as_json: bool) -> None:
    """All of them, newest first."""
    found = list(client.adapters(status=status, tag=tag, name=name))  # type: ignore[arg-type]  # click has checked it
    if as_json:
        print_json([dataclasses.asdict(adapter) for adapter in found])
        return
    titles = ("adapter", "status", "name", "tags", "labels", "examples", "made")
    print_table(
        titles,
        [(a.adapter_id, a.status, a.name, ",".join(a.tags), len(a.labels), a.examples, _time(a.created_at)) for a in found],
    )


@adapters.command()
@click.argument("adapter")
@as_json
@asks
def show(client: Client, adapter: str, as_json: bool) -> None:
    """Everything about one of them."""
    found = dataclasses.asdict(client.adapter(adapter))
    if as_json:
        print_json(found)
        return
    for key, value in found.items():
        shown = _time(value) if key in ("created_at", "expires_at") and value is not None else value
        click.echo(f"{key:<24}{plain(_in_words(shown))}")


@adapters.command()
@click.argument("adapter_ids", metavar="ADAPTER…", nargs=-1, required=True)
@asks
def delete(client: Client, adapter_ids: tuple[str, ...]) -> None:
    """Delete weights, records and examples."""
    for adapter in adapter_ids:
        client.delete(adapter)
        click.echo(f"{adapter} deleted")


@adapters.command()
@click.argument("adapter_ids", metavar="ADAPTER…", nargs=-1, required=True)
@asks
def pin(client: Client, adapter_ids: tuple[str, ...]) -> None:
    """Keep them from expiring."""
    for adapter in adapter_ids:
        client.pin(adapter)
        click.echo(f"{adapter} pinned")


@adapters.command()
@click.argument("adapter_ids", metavar="ADAPTER…", nargs=-1, required=True)
@asks
def unpin(client: Client, adapter_ids: tuple[str, ...]) -> None:
    """Let them expire again."""
    for adapter in adapter_ids:
        client.unpin(adapter)
        click.echo(f"{adapter} unpinned")


@adapters.command()
@click.argument("adapter")
@click.argument("file")
@click.option("--text-column", metavar="NAME", help="Of the examples' texts; `text` or `input` where there is one of them.")
@click.option("--label-column", metavar="NAME", help="Of their true labels; `label` where there is one.")
@format_option
@as_json
@asks
def score(
    client: Client,
    adapter: str,
    file: str,
    text_column: str | None,
    label_column: str | None,
    chosen: Format | None,
    as_json: bool,
) -> None:
    """How well it predicts the labelled rows of FILE."""
    with opened(file, chosen) as rows:
        examples = rows.examples(text_column, label_column)
        source = rows.name
    try:
        found = client.score(adapter, [(text, label) for _, text, label in examples])
    except Invalid as error:
        raise failed(error, "" if error.row is None else f"{source}, line {examples[error.row][0]}: ") from None
    lines = [examples[i][0] for i in found.mistakes]
    if as_json:
        print_json({**dataclasses.asdict(found), "mistaken_lines": lines})
        return
    _show_score(found, source, lines)


def _show_score(found: Score, source: str, lines: list[int]) -> None:
    click.echo(f"{found.examples} examples, accuracy {found.accuracy:.1%}, macro F1 {found.macro_f1:.3f}\n")
    titles = ("label", "precision", "recall", "F1", "examples")
    print_table(titles, [(name, own.precision, own.recall, own.f1, own.examples) for name, own in sorted(found.labels.items())])
    if lines:
        click.echo(f"\nwrong in {source}: lines {', '.join(map(str, lines))}")


@adapters.command()
@click.argument("adapter")
@as_json
@asks
def events(client: Client, adapter: str, as_json: bool) -> None:
    """What happens to it, as it happens, until its job has ended; exit code 1 where it is not ready then."""
    for event in client.events(adapter):
        if as_json:
            click.echo(json.dumps({"event": type(event).__name__.removesuffix("Event").lower(), **dataclasses.asdict(event)}))
        else:
            click.echo(_described(event))
        if isinstance(event, EndEvent):
            ready(event.adapter)


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
