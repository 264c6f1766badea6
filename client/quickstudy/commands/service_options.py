"""What every command that asks a service has: where it is, and what its errors end with."""

import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec

import click

from quickstudy import Client, OutOfReach, QuickstudyError, Unauthorised
from quickstudy.calls import NoName

P = ParamSpec("P")
REFUSED, WRONG_USAGE, OUT_OF_REACH, NOT_AUTHORISED = 1, 2, 3, 4
"""Exit codes beside 0; click's own for wrong usage is the same."""


class Failed(click.ClickException):
    """One line on stderr, and an exit code."""

    def __init__(self, message: str, exit_code: int = REFUSED) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click means it to be set, and reads it so

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {self.format_message()}", err=True, file=file)


def asks(command: Callable[Concatenate[Client, P], None]) -> Callable[P, None]:
    """Gives a command its client as the first argument, made from --url and the environment's QUICKSTUDY_API_KEY."""

    @click.option(
        "--url",
        envvar="QUICKSTUDY_URL",
        show_envvar=True,
        default="http://localhost:8000",
        show_default=True,
        help="Of the service. Its API key, where it needs one, is read from QUICKSTUDY_API_KEY.",
    )
    @functools.wraps(command)
    def asking(*arguments: P.args, **options: P.kwargs) -> None:
        _check_text(options)
        try:
            client = Client(str(options.pop("url")))
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        try:
            with client:
                command(client, *arguments, **options)
        except QuickstudyError as error:
            raise failed(error) from None
        except NoName as error:
            raise Failed(str(error), WRONG_USAGE) from None
        except KeyboardInterrupt:
            sys.exit(130)

    return asking


def _check_text(options: Mapping[str, Any]) -> None:
    """Raises Failed for an argument whose bytes are no text; the name of a file may be any. Its value is not shown."""
    for name, value in options.items():
        for part in (value if isinstance(value, tuple) else (value,)) if name != "file" else ():
            if isinstance(part, str) and not _encodes(part):
                raise Failed(f"{name}: expected text in UTF-8", WRONG_USAGE)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def failed(error: QuickstudyError, where: str = "") -> Failed:
    """`where`: the place in a file that the service means."""
    code = OUT_OF_REACH if isinstance(error, OutOfReach) else NOT_AUTHORISED if isinstance(error, Unauthorised) else REFUSED
    return Failed(f"{where}{error}", code)


def as_json(command: Callable[..., None]) -> Callable[..., None]:
    return click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")(command)


def print_json(content: Any) -> None:
    click.echo(json.dumps(content, indent=2, ensure_ascii=False))


def print_table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as they need to be; numbers to the right."""
    cells = [[plain(cell) for cell in row] for row in rows]
    widths = [max(len(title), *(len(row[i]) for row in cells), 0) for i, title in enumerate(titles)]
    right = [bool(rows) and all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(titles))]
    for row in [list(titles), *cells]:
        line = "  ".join(
            cell.rjust(width) if flush else cell.ljust(width) for cell, width, flush in zip(row, widths, right, strict=True)
        )
        click.echo(line.rstrip())


def plain(cell: object) -> str:
    """As it may be printed: of text from elsewhere, nothing that a terminal would obey."""
    text = "-" if cell is None else f"{cell:.3f}" if isinstance(cell, float) else str(cell)
    return "".join(letter if letter.isprintable() else "�" for letter in text)
