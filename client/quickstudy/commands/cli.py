"""The `quickstudy` command line: the client's commands, and commands that other distributions add.

A distribution adds commands with an entry point in the group `quickstudy.commands`. The entry point names a sequence of
`LateCommand` objects in a module that is quick to import.
"""

from collections.abc import Iterable
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any

import click

from quickstudy.commands.lazy_command import LateCommand
from quickstudy.commands.one_line_errors import OneLineErrors

GROUP = "quickstudy.commands"
NEEDS = "quickstudy[cli]"
SERVER_NEEDS = "quickstudy-server[embedded]"
SERVER_COMMANDS = (
    *("audit", "backup", "demo", "encryption", "initializations", "jobs", "keys"),
    *("predictor", "restore", "serve", "tenants", "worker"),
)
"""The commands of the server distribution. If they are called without that distribution, the error says what to install."""

CLIENT_COMMANDS = (
    LateCommand("adapt", "quickstudy.commands.adapt", "Create an adapter from the labelled rows of a file.", needs=NEEDS),
    LateCommand("predict", "quickstudy.commands.predict", "Label the rows of a file.", needs=NEEDS),
    LateCommand("adapters", "quickstudy.commands.adapters", "List, show, score, watch, pin and delete adapters.", needs=NEEDS),
    LateCommand("alias", "quickstudy.commands.alias", "Set, list and delete names that point at adapters.", needs=NEEDS),
    LateCommand("status", "quickstudy.commands.status", "Show readiness, initializations and usage.", needs=NEEDS),
)
_OUR_PACKAGES = ("quickstudy", "service", "worker", "metatrain")


class CommandLine(OneLineErrors):
    """The `quickstudy` command group. It loads entry points only when it needs their commands."""

    @cached_property
    def _installed(self) -> dict[str, LateCommand]:
        commands: dict[str, LateCommand] = {}
        for entry in entry_points(group=GROUP):
            try:
                commands |= {str(command.name): command for command in entry.load()}
            except ModuleNotFoundError:  # metadata of a package whose code is gone must not break the client's commands
                continue
        return commands

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*self.commands, *self._installed})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command with this name, or None if there is none.

        Raises ClickException for a server command that is not installed.
        """
        command = self.commands.get(cmd_name) or self._installed.get(cmd_name)
        if command is None and cmd_name in SERVER_COMMANDS:
            raise click.ClickException(f"{cmd_name} is not installed; this command needs {SERVER_NEEDS}")
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. If an import is missing, raises ClickException, which says what to install."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            if not isinstance(command, LateCommand) or (error.name or "").split(".")[0] in _OUR_PACKAGES:
                raise
            raise click.ClickException(f"{error.name} is not installed; this command needs {command.needs}") from None


def command_line(more: Iterable[LateCommand] = ()) -> CommandLine:
    """Return the `quickstudy` command with the client's commands and `more`.

    `more`: commands that are not installed as entry points, such as the server's commands in a source checkout.
    """
    commands: dict[str, click.Command] = {str(command.name): command for command in (*CLIENT_COMMANDS, *more)}
    group = CommandLine("quickstudy", commands=commands, help="Few-shot adaptation as a service.")
    return click.version_option(package_name="quickstudy", message="quickstudy %(version)s")(group)
