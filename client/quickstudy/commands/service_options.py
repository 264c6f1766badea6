"""The options, output functions and refusals of the commands that call a service."""

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec

import click

from quickstudy import Client, OutOfReach, QuickstudyError, Unauthorised
from quickstudy.calls import InvalidName
from quickstudy.commands.one_line_errors import NOT_AUTHORISED, OUT_OF_REACH, REFUSED, WRONG_USAGE, CommandFailed
from quickstudy.one_line import printable

P = ParamSpec("P")
_POSITION = re.compile(r"\A(?:inputs|support|examples)\[\d+\](?:: |\.)")


def with_client(command: Callable[Concatenate[Client, P], None]) -> Callable[P, None]:
    """Add the option `--url` to a command, and call the command with a client of that service.

    The client is the command's first argument. It reads its API key from QUICKSTUDY_API_KEY. An error of the client becomes a
    CommandFailed with the matching exit code.
    """

    @click.option(
        "--url",
        envvar="QUICKSTUDY_URL",
        show_envvar=True,
        default="http://localhost:8000",
        show_default=True,
        help="URL of the service. Its API key, if it needs one, is read from QUICKSTUDY_API_KEY.",
    )
    @functools.wraps(command)
    def wrapper(*arguments: P.args, **options: P.kwargs) -> None:
        _check_text(options)
        try:
            client = Client(str(options.pop("url")))
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        try:
            with client:
                command(client, *arguments, **options)
        except QuickstudyError as error:
            raise failure_of(error) from None
        except InvalidName as error:
            raise CommandFailed(str(error), WRONG_USAGE) from None

    return wrapper


def _check_text(options: Mapping[str, Any]) -> None:
    """Raise CommandFailed if a command line argument other than FILE is not valid UTF-8.

    The message does not contain the value, which may be secret.
    """
    for name, value in options.items():
        for part in (value if isinstance(value, tuple) else (value,)) if name != "file" else ():
            if isinstance(part, str) and not _is_valid_unicode(part):
                raise CommandFailed(f"{name}: expected text in UTF-8", WRONG_USAGE)


def _is_valid_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def failure_of(error: QuickstudyError, location: str = "") -> CommandFailed:
    """Convert a client error into a `CommandFailed` with the matching exit code.

    `location`: text to put before the message, such as the file and line of an invalid row. It replaces the row's position in the
    request, which has only a part of the file's rows.
    """
    message = _POSITION.sub("", str(error)) if location else str(error)
    code = OUT_OF_REACH if isinstance(error, OutOfReach) else NOT_AUTHORISED if isinstance(error, Unauthorised) else REFUSED
    hint = "; choose the service with --url or QUICKSTUDY_URL" if code == OUT_OF_REACH else ""
    return CommandFailed(f"{location}{message}{hint}", code)


def as_json(command: Callable[..., None]) -> Callable[..., None]:
    """Add the option `--json` to a command."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(command)


def print_json(content: Any) -> None:
    click.echo(json.dumps(content, indent=2, ensure_ascii=False))


def print_table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print aligned columns. Columns of numbers are aligned to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(title), *(len(row[i]) for row in cells), 0) for i, title in enumerate(titles)]
    right = [bool(rows) and all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(titles))]
    for row in [list(titles), *cells]:
        line = "  ".join(
            cell.rjust(width) if flush else cell.ljust(width) for cell, width, flush in zip(row, widths, right, strict=True)
        )
        click.echo(line.rstrip())


def _cell(value: object) -> str:
    return printable("-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value))
