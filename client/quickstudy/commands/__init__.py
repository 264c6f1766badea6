"""The commands that call a service over HTTP. They need only httpx, click and tqdm."""

import sys


def main() -> None:
    """Run the console script `quickstudy`. Exit with a one-line error and status 1 if click is missing."""
    try:
        from quickstudy.commands.cli import command_line
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        sys.exit("error: click is not installed; the command line needs it: pip install './client[cli]' in the checkout")
    command_line()()
