"""`quickstudy adapt`: labelled rows of a file → an adapter."""

import dataclasses

import click

from quickstudy import Adaptation, Adapter, Client, DryRun, Invalid
from quickstudy.calls import AdaptOptions
from quickstudy.commands.progress import AdaptProgress
from quickstudy.commands.rows import Format, format_option, opened
from quickstudy.commands.service_options import as_json, asks, failed, print_json, print_table

WAIT_SECONDS = 600.0


@click.command()
@click.argument("file")
@click.option("--text-column", metavar="NAME", help="Of the examples' texts; `text` or `input` where there is one of them.")
@click.option("--label-column", metavar="NAME", help="Of their labels; `label` where there is one.")
@format_option
@click.option("--initialization", metavar="NAME", help="What to adapt from; `quickstudy status` lists them.")
@click.option("--base-model", metavar="NAME", help="Where the service has several: `quickstudy status` lists them.")
@click.option("--steps", type=click.IntRange(0, 100), help="Inner steps; as the initialization has it where not said.")
@click.option("--label-words", is_flag=True, help="Each label's own words are one more example of it.")
@click.option("--name", help="What the adapter is called in lists.")
@click.option("--tag", "tags", multiple=True, help="May be given more than once.")
@click.option("--ttl", type=click.IntRange(1), metavar="SECONDS", help="How long the adapter is kept.")
@click.option("--wait", is_flag=True, help=f"Until it is ready, {WAIT_SECONDS / 60:.0f} minutes at most.")
@click.option("--dry-run", is_flag=True, help="Make nothing; say what would be made, and what is odd about the examples.")
@as_json
@asks
def adapt(
    client: Client,
    file: str,
    text_column: str | None,
    label_column: str | None,
    chosen: Format | None,
    initialization: str | None,
    base_model: str | None,
    steps: int | None,
    label_words: bool,
    name: str | None,
    tags: tuple[str, ...],
    ttl: int | None,
    wait: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Learn from the labelled rows of FILE (CSV, TSV or JSON Lines; - is standard input), and print the adapter's id."""
    with opened(file, chosen) as rows:
        examples = rows.examples(text_column, label_column)
        source = rows.name
    options = _options(initialization, steps, label_words, name, tags, ttl)
    if base_model is not None:
        options["base_model"] = base_model
    support = [(text, label) for _, text, label in examples]
    try:
        if dry_run:
            _show_dry_run(client.dry_run(support, **options), [line for line, _, _ in examples], as_json)
            return
        answer = client.adapt(support, wait=0, **options)
    except Invalid as error:
        raise failed(error, "" if error.row is None else f"{source}, line {examples[error.row][0]}: ") from None
    state = client.wait(answer, WAIT_SECONDS, AdaptProgress()) if wait and answer.status != "ready" else answer
    _show(state, answer, as_json)


def _options(
    initialization: str | None, steps: int | None, label_words: bool, name: str | None, tags: tuple[str, ...], ttl: int | None
) -> AdaptOptions:
    """Only what was said: the rest is the service's choice."""
    options: AdaptOptions = {"name": name, "ttl_seconds": ttl}
    if initialization is not None:
        options["initialization"] = initialization
    if steps is not None:
        options["steps"] = steps
    if label_words:
        options["label_words"] = True
    if tags:
        options["tags"] = tags
    return options


def _show(state: Adaptation | Adapter, answer: Adaptation, as_json: bool) -> None:
    """The id alone on stdout, for `$(…)`; what a person wants to know beside it on stderr."""
    click.echo(state.status, err=True)
    if answer.truncated:
        click.echo(f"{len(answer.truncated)} examples were cut to the base model's maximum length", err=True)
    if as_json:
        print_json(dataclasses.asdict(state))
    else:
        click.echo(state.adapter_id)


def _show_dry_run(found: DryRun, lines: list[int], as_json: bool) -> None:
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    click.echo(f"{found.adapter_id} {found.status}, {found.examples} examples, {_steps(found.steps)}")
    print_table(("label", "examples"), sorted(found.labels.items()))
    if found.truncated:
        click.echo(f"cut to the base model's maximum length: lines {', '.join(str(lines[i]) for i in found.truncated)}")
    for notice in found.warnings:
        click.echo(f"{notice.field if notice.row is None else f'line {lines[notice.row]}'}: {notice.message}")


def _steps(steps: int | None) -> str:
    return "steps as the examples need" if steps is None else f"{steps} steps"
