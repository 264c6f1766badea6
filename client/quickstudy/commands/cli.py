"""`quickstudy`: the commands of the client by name, and those that other distributions add.

A distribution adds commands by an entry point in the group `quickstudy.commands`. It names a sequence of `LateCommand`, in a module
that is quick to import.
"""

from collections.abc import Iterable
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any

import click

from quickstudy.commands.lazy_command import LateCommand

GROUP = "quickstudy.commands"
NEEDS = "quickstudy[cli]"
SERVER_NEEDS = "quickstudy-server[embedded]"
SERVER_COMMANDS = ("demo", "jobs", "keys", "predictor", "serve", "worker")
"""The server's commands, known here only to say what to install."""

CLIENT_COMMANDS = (
    LateCommand("adapt", "quickstudy.commands.adapt", "Learn from the labelled rows of a file.", needs=NEEDS),
    LateCommand("predict", "quickstudy.commands.predict", "Label the rows of a file.", needs=NEEDS),
    LateCommand("adapters", "quickstudy.commands.adapters", "What the service has, and what becomes of it.", needs=NEEDS),
    LateCommand("alias", "quickstudy.commands.alias", "Names that point at adapters, and may be moved.", needs=NEEDS),
    LateCommand("status", "quickstudy.commands.status", "Whether the service is ready, and what it has.", needs=NEEDS),
)
_OUR_PACKAGES = ("quickstudy", "service", "worker", "metatrain")


class CommandLine(click.Group):
    """A group of its own commands, and of those that entry points add; entry points are read only if they are needed."""

    @cached_property
    def _installed(self) -> dict[str, LateCommand]:
        found: dict[str, LateCommand] = {}
        for entry in entry_points(group=GROUP):
            try:
                found |= {str(command.name): command for command in entry.load()}
            except ModuleNotFoundError:  # metadata without its code must not break the client's own commands
                continue
        return found

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*self.commands, *self._installed})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of this name, or None. Raise ClickException for one of the server's that is not installed."""
        command = self.commands.get(cmd_name) or self._installed.get(cmd_name)
        if command is None and cmd_name in SERVER_COMMANDS:
            raise click.ClickException(f"{cmd_name} is not installed; this command needs {SERVER_NEEDS}")
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and if one of its imports is not installed, say in one line what to install."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            if not isinstance(command, LateCommand) or (error.name or "").split(".")[0] in _OUR_PACKAGES:
                raise
            raise click.ClickException(f"{error.name} is not installed; this command needs {command.needs}") from None


def command_line(more: Iterable[LateCommand] = ()) -> CommandLine:
    """Return `quickstudy` with the client's commands and `more`: those of a checkout, whose entry points are not installed."""
    commands: dict[str, click.Command] = {str(command.name): command for command in (*CLIENT_COMMANDS, *more)}
    return CommandLine("quickstudy", commands=commands, help="Few-shot adaptation as a service.")
