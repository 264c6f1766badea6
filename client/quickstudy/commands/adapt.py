"""`quickstudy adapt`: create an adapter from the labelled rows of a file."""

import dataclasses
import re
from collections.abc import Sequence

import click

from quickstudy import Adaptation, Adapter, Client, DryRun, Invalid, Notice
from quickstudy.calls import AdaptOptions
from quickstudy.commands.one_line_errors import CommandFailed
from quickstudy.commands.progress import AdaptProgress
from quickstudy.commands.rows import format_option, open_rows, place_of, show_hints
from quickstudy.commands.service_options import as_json, failure_of, print_json, print_table, with_client
from quickstudy.one_line import printable
from quickstudy.tables import Format

WAIT_SECONDS = 600.0
_OTHER_EXAMPLE = re.compile(r"""(?<!\w)(?:'(?:[^'\\]|\\.)*(?:'|$)|"(?:[^"\\]|\\.)*(?:"|$))|(?<=(?:as|in) )support\[(\d+)\]""")
"""A label in quotes, which may have any text, or another example in a message of the service: `the same example as support[3]`,
`'cancel' as in support[3]`."""


@click.command()
@click.argument("file")
@click.option("--text-column", metavar="NAME", help="Column of the texts. Default: `text` or `input`.")
@click.option("--label-column", metavar="NAME", help="Column of the labels. Default: `label`.")
@format_option
@click.option("--initialization", metavar="NAME", help="Initialization to adapt from; `quickstudy status` lists them.")
@click.option("--base-model", metavar="NAME", help="Base model, if the service has several; `quickstudy status` lists them.")
@click.option("--steps", type=click.IntRange(0, 100), help="Inner steps. Default: the initialization's own.")
@click.option(
    "--label-words/--no-label-words",
    default=None,
    help="Use each label's own words as one more example of it, or not. Default: a test on the examples decides.",
)
@click.option("--name", help="Name of the adapter in lists.")
@click.option("--tag", "tags", multiple=True, help="Tag of the adapter; may be given more than once.")
@click.option("--ttl", type=click.IntRange(1), metavar="SECONDS", help="Seconds that the adapter is kept.")
@click.option("--wait", is_flag=True, help=f"Wait until the adapter is ready, at most {WAIT_SECONDS / 60:.0f} minutes.")
@click.option("--dry-run", is_flag=True, help="Create nothing; show what would be created, and warnings about the examples.")
@as_json
@with_client
def adapt(
    client: Client,
    file: str,
    text_column: str | None,
    label_column: str | None,
    file_format: Format | None,
    initialization: str | None,
    base_model: str | None,
    steps: int | None,
    label_words: bool | None,
    name: str | None,
    tags: tuple[str, ...],
    ttl: int | None,
    wait: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Create an adapter from the labelled rows of FILE and print its id.

    FILE is CSV, TSV, JSON Lines or a JSON array, also packed with gzip; - is standard input.
    """
    with open_rows(file, file_format, text_column, label_column) as rows:
        examples = rows.examples(text_column, label_column)
        source = rows.name
    show_hints(source, examples)
    options = _options(initialization, steps, label_words, name, tags, ttl)
    if base_model is not None:
        options["base_model"] = base_model
    support, lines = [(text, label) for _, text, label in examples], [line for line, _, _ in examples]
    try:
        if dry_run:
            _show_dry_run(client.dry_run(support, **options), lines, as_json)
            return
        answer = client.adapt(support, wait=0, **options)
    except Invalid as error:
        failure = failure_of(error, place_of(error, source, lines))
        raise CommandFailed(_with_lines(failure.message, lines), failure.exit_code) from None
    _show_warnings(answer.warnings, lines, to_stderr=True)  # before the wait, so that a user can stop it
    state = client.wait(answer, WAIT_SECONDS, AdaptProgress()) if wait and answer.status != "ready" else answer
    _show(state, answer, as_json)


def _options(
    initialization: str | None,
    steps: int | None,
    label_words: bool | None,
    name: str | None,
    tags: tuple[str, ...],
    ttl: int | None,
) -> AdaptOptions:
    """Return the options that were given. The service's defaults apply to the others."""
    options: AdaptOptions = {"name": name, "ttl_seconds": ttl}
    if initialization is not None:
        options["initialization"] = initialization
    if steps is not None:
        options["steps"] = steps
    if label_words is not None:
        options["label_words"] = label_words
    if tags:
        options["tags"] = tags
    return options


def _show(state: Adaptation | Adapter, answer: Adaptation, as_json: bool) -> None:
    # Only the id goes to stdout, so that a script can capture it with `$(…)`.
    words = ""
    if isinstance(state, Adapter) and state.label_words == "auto" and state.label_words_used is not None:
        words = f", {'with' if state.label_words_used else 'without'} the words of its labels as examples"
    click.echo(f"{state.status}{words}", err=True)
    if as_json:
        print_json(dataclasses.asdict(state))
    else:
        click.echo(state.adapter_id)


def _show_dry_run(dry_run: DryRun, lines: list[int], as_json: bool) -> None:
    if as_json:
        print_json(dataclasses.asdict(dry_run))
        return
    click.echo(f"{dry_run.adapter_id} {dry_run.status}, {dry_run.examples} examples, {_steps(dry_run.steps)}")
    print_table(("label", "examples"), sorted(dry_run.labels.items()))
    _show_warnings(dry_run.warnings, lines, to_stderr=False)


def _show_warnings(warnings: Sequence[Notice], lines: Sequence[int], *, to_stderr: bool) -> None:
    for notice in warnings:
        place = "" if notice.row is None else f"line {lines[notice.row]}: "
        click.echo(printable(f"warning: {place}{_with_lines(notice.message, lines)}"), err=to_stderr)


def _with_lines(message: str, lines: Sequence[int]) -> str:
    """Return a message of the service with the file's lines in place of the positions of other examples."""

    def shown_line(found: re.Match[str]) -> str:
        return f"line {lines[int(found[1])]}" if found[1] is not None and int(found[1]) < len(lines) else found[0]

    return _OTHER_EXAMPLE.sub(shown_line, message)


def _steps(steps: int | None) -> str:
    return "number of steps depends on the examples" if steps is None else f"{steps} steps"
