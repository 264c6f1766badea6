"""A command whose module is imported only when the command runs."""

import importlib
from typing import Any

import click


class LateCommand(click.Command):
    """A placeholder for the command of the same name in `module`.

    The module is imported only when the command runs. So `quickstudy --help` and all other commands start without the imports of
    this command. `needs`: the requirement to install if one of these imports is missing.
    """

    def __init__(self, name: str, module: str, summary: str, *, needs: str) -> None:
        super().__init__(name, help=summary)
        self.module, self.needs = module, needs

    def load(self) -> click.Command:
        """Import the module and return the real command."""
        command: click.Command = getattr(importlib.import_module(self.module), str(self.name))
        return command

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Return a context of the real command, so that click invokes the real command and not this one."""
        return self.load().make_context(info_name, args, parent, **extra)
