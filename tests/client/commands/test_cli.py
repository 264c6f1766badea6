"""The `quickstudy` command line: its list of commands, its imports, and errors for missing packages."""

import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint

import click
import pytest
from click.testing import CliRunner
from quickstudy.commands import cli
from quickstudy.commands.lazy_command import LateCommand

from service.__main__ import main
from service.running.commands import COMMANDS
from tests.end_to_end.conftest import ROOT

HEAVY = {"torch", "redis", "pydantic", "httpx", "fastapi", "celery", "transformers"}


def python(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def entry_points(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """Replace the installed entry points with an empty list. Return the list, for the test to fill."""
    installed: list[EntryPoint] = []

    def in_group(group: str) -> Sequence[EntryPoint]:
        return [entry for entry in installed if entry.group == group]

    monkeypatch.setattr(cli, "entry_points", in_group)
    return installed


SERVER = EntryPoint("server", "service.running.commands:COMMANDS", "quickstudy.commands")


def test_help_imports_no_heavy_package() -> None:
    done = python("import sys; from service.__main__ import main; main(['--help'], standalone_mode=False); print(*sys.modules)")
    assert done.returncode == 0 and "predict" in done.stdout
    assert not set(done.stdout.split()) & HEAVY


@pytest.mark.parametrize("command", main.commands.values(), ids=str)
def test_a_late_command_loads_the_real_command(command: click.Command) -> None:
    assert isinstance(command, LateCommand)
    real = command.load()
    assert real.name == command.name
    done = CliRunner().invoke(main, [str(command.name), "--help"])
    assert done.exit_code == 0 and done.stdout.startswith(f"Usage: quickstudy {command.name} ")


def test_the_servers_commands_are_added_by_an_entry_point(entry_points: list[EntryPoint]) -> None:
    entry_points.append(SERVER)
    installed, checkout = (CliRunner().invoke(command, ["--help"]).stdout for command in (cli.command_line(), main))
    assert installed == checkout and all(f"\n  {name} " in installed for name in ("status", *cli.SERVER_COMMANDS))
    done = CliRunner().invoke(cli.command_line(), ["serve", "--help"])
    assert done.exit_code == 0 and "--data-dir" in done.stdout


def test_the_client_lists_the_names_of_all_server_commands() -> None:
    assert sorted(cli.SERVER_COMMANDS) == sorted(str(command.name) for command in COMMANDS)


@pytest.mark.parametrize("name", cli.SERVER_COMMANDS)
@pytest.mark.parametrize("value", [None, "nowhere.commands:COMMANDS"], ids=["no entry point", "metadata without code"])
def test_a_server_command_without_the_server_says_what_to_install(
    entry_points: list[EntryPoint], name: str, value: str | None
) -> None:
    if value is not None:
        entry_points.append(EntryPoint("server", value, "quickstudy.commands"))
    done = CliRunner().invoke(cli.command_line(), [name, "--port", "0"])
    assert done.exit_code == 1
    assert done.output == f"error: {name} is not installed; this command needs quickstudy-server[embedded]\n"
    assert f"\n  {name} " not in CliRunner().invoke(cli.command_line(), ["--help"]).stdout


def test_an_unknown_command_is_wrong_usage(entry_points: list[EntryPoint]) -> None:
    done = CliRunner().invoke(cli.command_line(), ["nowhere"])
    assert done.exit_code == 2 and "error: No such command 'nowhere'" in done.output


def test_a_command_with_a_missing_import_says_what_to_install() -> None:
    absent = "import sys; sys.modules.update(tqdm=None); "
    done = python(absent + "from quickstudy.commands import main; sys.argv = ['quickstudy', 'predict', 'a1']; main()")
    assert done.returncode == 1 and done.stderr == "error: tqdm is not installed; this command needs quickstudy[cli]\n"


def test_without_click_the_script_says_what_to_install() -> None:
    done = python("import sys; sys.modules.update(click=None); from quickstudy.commands import main; main()")
    assert done.returncode == 1
    expected = "error: click is not installed; the command line needs it: pip install './client[cli]' in the checkout\n"
    assert done.stderr == expected


def test_a_missing_module_of_the_product_is_not_reported_as_a_missing_package() -> None:
    wrong = LateCommand("wrong", "service.nowhere", "", needs="nothing")
    done = CliRunner().invoke(cli.command_line([wrong]), ["wrong"])
    assert isinstance(done.exception, ModuleNotFoundError) and done.exception.name == "service.nowhere"
