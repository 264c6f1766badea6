"""The place where commands turn errors into one line on stderr and an exit code."""

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from quickstudy.one_line import one_line, shown_path

REFUSED, WRONG_USAGE, OUT_OF_REACH, NOT_AUTHORISED, INTERRUPTED, CLOSED_PIPE = 1, 2, 3, 4, 130, 141
"""Exit codes. WRONG_USAGE is also click's own code for a wrong command line; a shell shows the last two for signals."""


class CommandFailed(click.ClickException):
    """An error that makes the command print one line on stderr and exit with `exit_code`."""

    def __init__(self, message: str, exit_code: int = REFUSED) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads the instance's attribute


class OneLineErrors(click.Group):
    """A group of commands whose errors end in one short line, `error: …`, without control characters.

    An exception class with an attribute `exit_code` is an error of the user's input: its message is printed, and the command exits
    with that code. Errors of the operating system, such as a missing permission, exit with REFUSED. All other exceptions are faults
    of the product, and keep their traceback.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        If the reader of its output has gone, as in `quickstudy … | head`, exits without a message.
        """
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in a buffer is written at the exit
            ctx.exit(CLOSED_PIPE)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line. In standalone mode, exit with a code; otherwise behave as click does."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, **extra)
        try:
            # Outside standalone mode, click returns the exit code of `--help` and of `ctx.exit`.
            returned = super().main(args, prog_name, complete_var, False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.ClickException as error:
            _end(_message(error), error.exit_code)
        except click.Abort:  # Ctrl-C
            sys.exit(INTERRUPTED)
        except SystemExit as end:
            if isinstance(end.code, str):  # `sys.exit` with a message, which has the prefix already
                _end(end.code.removeprefix("error: "), REFUSED)
            raise
        except OSError as error:
            _end(_of_system(error), REFUSED)
        except Exception as error:
            code = getattr(error, "exit_code", None)
            if not isinstance(code, int):
                raise
            _end(str(error), code)
        sys.exit(returned if isinstance(returned, int) else 0)


def _end(message: str, code: int) -> NoReturn:
    click.echo(f"error: {one_line(message)}", err=True)
    sys.exit(code)


def _message(error: click.ClickException) -> str:
    message = error.format_message()
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{message.rstrip('.')}; see {context.command_path} --help" if context is not None else message


def _of_system(error: OSError) -> str:
    name = f"{shown_path(str(error.filename))}: " if error.filename is not None else ""
    return f"{name}{error.strerror or error}"
