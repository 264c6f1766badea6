"""A command whose module is imported when the command runs."""

import importlib
from typing import Any

import click


class LateCommand(click.Command):
    """A command by name: `module` has the real one under the same name, and is imported when it runs.

    So `quickstudy --help` and the other commands neither wait for what this one imports nor need it. `needs` is the requirement
    to install if one of its imports is missing.
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
        """Return the real command's context, which also invokes the real command."""
        return self.load().make_context(info_name, args, parent, **extra)
