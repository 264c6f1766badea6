"""The distributions, installed into an empty environment: their packages, commands and messages."""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("metatrain", "worker", "service")


class Environment:
    """A virtual environment, and a copy of the sources to install from.

    Installing from a copy leaves no build files in the checkout.
    """

    def __init__(self, folder: Path) -> None:
        self.sources, self._bin = folder / "sources", folder / "venv" / "bin"
        ignored = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
        for name in ("client", *PACKAGES):
            shutil.copytree(ROOT / name, self.sources / name, ignore=ignored)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, self.sources)
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        [self.site] = (folder / "venv" / "lib").glob("python*/site-packages")

    def run(self, command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        words = [str(self._bin / command), *arguments]
        return subprocess.run(words, cwd=self.sources.parent, env=inherited, capture_output=True, text=True, check=False)

    def install(self, *what: str) -> "subprocess.CompletedProcess[str]":
        return self.run("python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *what)

    def content(self) -> set[str]:
        """Return the names in site-packages: packages, and distributions without their versions."""
        return {path.name.partition("-")[0] if path.suffix == ".dist-info" else path.name for path in self.site.iterdir()}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """Create an environment with the client's dependencies. The tests install more packages into it."""
    created = Environment(tmp_path_factory.mktemp("packaging"))
    done = created.install("httpx", "setuptools>=77")
    if done.returncode:
        pytest.skip(f"pip cannot reach a package index: {(done.stderr.strip().splitlines() or ['no error message'])[-1]}")
    yield created


def check(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
def test_the_packages_and_commands_of_each_distribution(environment: Environment) -> None:
    before = environment.content()
    check(environment.install(str(environment.sources / "client")))
    assert environment.content() - before == {"quickstudy"}
    assert (environment.site / "quickstudy" / "py.typed").is_file()
    check(environment.run("python", "-W", "error", "-c", "from quickstudy import Client, AsyncClient; Client().close()"))
    bare = environment.run("quickstudy", "status")
    assert bare.returncode == 1 and bare.stderr.count("\n") == 1 and "pip install 'quickstudy[cli]'" in bare.stderr

    check(environment.install(f"{environment.sources / 'client'}[cli]"))
    assert environment.content() - before == {"quickstudy", "click", "tqdm"}
    assert "\n  status " in check(environment.run("quickstudy", "--help"))
    unreachable = environment.run("quickstudy", "status", "--url", "http://127.0.0.1:1")
    assert unreachable.returncode == 3, unreachable.stderr
    not_installed = environment.run("quickstudy", "serve")
    assert not_installed.returncode == 1
    assert not_installed.stderr == "error: serve is not installed; this command needs quickstudy-server[embedded]\n"

    check(environment.install(str(environment.sources / "client"), str(environment.sources)))
    assert environment.content() - before == {"quickstudy", "click", "tqdm", "quickstudy_server", *PACKAGES}
    assert "\n  serve " in check(environment.run("quickstudy", "--help"))
    without_extra = environment.run("quickstudy", "jobs", "dead")
    assert without_extra.returncode == 1
    assert without_extra.stderr == "error: redis is not installed; this command needs quickstudy-server[embedded]\n"
    for path in (path for name in PACKAGES for path in (environment.sources / name).rglob("*") if path.is_file()):
        assert (environment.site / path.relative_to(environment.sources)).is_file(), path


def test_the_server_pins_the_client_and_a_worker_needs_no_command_line() -> None:
    server, client = (tomllib.loads((ROOT / name).read_text())["project"] for name in ("pyproject.toml", "client/pyproject.toml"))
    extras = server["optional-dependencies"]
    assert f"quickstudy[cli]=={client['version']}" in extras["service"] and server["version"] == client["version"]
    assert f"quickstudy=={client['version']}" in extras["train"]
    assert server["dependencies"] == [] and not any("quickstudy[" in need for need in extras["train"] + extras["worker"])
