"""Imports go one way: service → worker → metatrain → reading files; light modules need no torch."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "metatrain": {"metatrain", "quickstudy"},
    "worker": {"worker", "metatrain", "quickstudy"},
    "client/quickstudy": {"quickstudy"},
    "service": {"service", "worker", "metatrain", "quickstudy"},
}
WITHOUT_HTTP = ("quickstudy.tables", "quickstudy.one_line", "quickstudy.commands.one_line_errors")
"""The modules of the client that the layers below the service may import. They call no service; the first two need nothing."""
OUR_OWN = {"metatrain", "worker", "service", "quickstudy"}
CLIENT_NEEDS = {"httpx"}
COMMANDS_NEED = CLIENT_NEEDS | {"click", "tqdm"}
FOREIGN = {
    "metatrain": {"redis", "celery", "kombu", "fastapi", "starlette", "uvicorn", "httpx"},
    "worker": {"fastapi", "starlette", "httpx"},
}
TORCH_FREE = [f"worker.ledger.{path.stem}" for path in sorted((ROOT / "worker" / "ledger").glob("*.py")) if path.stem != "__init__"]
TORCH_FREE += ["quickstudy", "worker.settings", "worker.collection", "service.settings", "service.running.standalone"]


def imported_packages(path: Path) -> set[str]:
    """Return the top-level packages that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        packages = imported_packages(path)
        assert packages & OUR_OWN <= MAY_IMPORT[package], path
        assert not packages & FOREIGN.get(package, set()), path


def test_the_client_imports_only_its_dependencies() -> None:
    client = ROOT / "client" / "quickstudy"
    for path in sorted(client.rglob("*.py")):
        needed = COMMANDS_NEED if "commands" in path.relative_to(client).parts else CLIENT_NEEDS
        assert imported_packages(path) - sys.stdlib_module_names - {"quickstudy"} <= needed, path


@pytest.mark.parametrize("package", ["metatrain", "worker"])
def test_below_the_service_only_reading_and_messages_come_from_the_client(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert all(name in WITHOUT_HTTP for name in names if name.split(".")[0] == "quickstudy"), path


def test_reading_tables_needs_only_the_standard_library() -> None:
    client = ROOT / "client" / "quickstudy"
    for path in (client / "one_line.py", *(client / "tables").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        ours = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
        assert imported_packages(path) - sys.stdlib_module_names <= {"quickstudy"}, path
        assert all(name.startswith(("quickstudy.tables", "quickstudy.one_line")) for name in ours if "quickstudy" in name), path
    code = f"import sys, {', '.join(WITHOUT_HTTP)}; sys.exit('httpx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("module", TORCH_FREE)
def test_light_modules_do_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


COMMANDS = """
import sys
sys.modules.update(torch=None, transformers=None, peft=None)  # an import of one of them fails
import click
from metatrain.cli import main as metatrain
from service.__main__ import main as quickstudy

def helps(group, command, *path):
    command = command.load() if hasattr(command, "load") else command
    yield group, [*path, "--help"]
    for name in command.list_commands(click.Context(command)) if isinstance(command, click.Group) else ():
        yield from helps(group, command.get_command(click.Context(command), name), *path, name)

calls = [*helps(quickstudy, quickstudy), *helps(metatrain, metatrain)]
calls += [(quickstudy, ["jobs", "--data-dir", "nowhere", "dead"]), (quickstudy, ["keys", "--data-dir", "nowhere", "list"])]
calls += [(quickstudy, ["serve", "--data-dir", "nowhere", "--port", "0"])]
for group, arguments in calls:
    try:
        group.main(arguments, "command")
    except SystemExit as end:
        print("ENDED", *arguments, end.code)
"""


def test_no_command_imports_torch_before_it_needs_it() -> None:
    """Run every `--help`, the commands that only read records, and `serve` with a wrong setting."""
    environment = {**os.environ, "BASE_MODEL": "./nowhere"}
    environment.pop("REDIS_URL", None)
    done = subprocess.run([sys.executable, "-c", COMMANDS], cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ended = [line.removeprefix("ENDED ") for line in done.stdout.splitlines() if line.startswith("ENDED ")]
    assert {"--help 0", "jobs dead --help 0", "keys create --help 0", "serve --help 0", "train --help 0", "evaluate --help 0"} <= {
        *ended
    }
    not_running = "error: REDIS_URL is not set, and no quickstudy runs on --data-dir nowhere"
    assert ended[-3:] == ["jobs --data-dir nowhere dead 1", "keys --data-dir nowhere list 1", "serve --data-dir nowhere --port 0 1"]
    assert done.stderr.splitlines() == [not_running, not_running, "error: base.model: no folder at './nowhere'"]
    assert all(line.endswith("--help 0") for line in ended[:-3])


SERVER_SIDE = ("torch", "transformers", "numpy", "pydantic", "redis", "celery", "kombu", "fastapi", "uvicorn", "prometheus_client")
NOT_A_CLIENTS = (*SERVER_SIDE, "service", "worker", "metatrain")
EXAMPLES = "service/examples/library_examples.csv"


@pytest.mark.parametrize(
    ("run", "absent"),
    [
        ("from quickstudy import *", (*NOT_A_CLIENTS, "click", "tqdm")),
        ("from quickstudy.commands.cli import command_line; command_line()(['status'])", NOT_A_CLIENTS),
        ("from quickstudy.commands.cli import command_line; command_line()(['predict', 'a1', '--text', 'a'])", NOT_A_CLIENTS),
        (f"from quickstudy.commands.cli import command_line; command_line()(['adapt', '{EXAMPLES}'])", NOT_A_CLIENTS),
    ],
)
def test_the_client_runs_without_the_servers_packages(run: str, absent: tuple[str, ...]) -> None:
    """Run the client without the `absent` packages. Nothing listens on port 1, so commands exit with 3."""
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); {run}"
    environment = {**os.environ, "QUICKSTUDY_URL": "http://127.0.0.1:1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == (3 if "command_line" in run else 0), done.stderr


def test_a_command_with_a_missing_package_says_what_to_install() -> None:
    code = "import sys; sys.modules.update(redis=None); from service.__main__ import main; main(['jobs', 'dead'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "error: redis is not installed; this command needs quickstudy-server[embedded]\n"


def test_nothing_reads_pickles() -> None:
    for package in MAY_IMPORT:
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert "pickle" not in imported_packages(path), path
            assert "torch.load(" not in text and "trust_remote_code=True" not in text, path
