"""Check out another commit in a separate folder, and run the scripts of this folder with its code.

A script runs as a file, with the checkout as its working directory and first on the import path, so that `import metatrain` imports
the checkout's code. Such a script must not import anything from `tests`.
"""

import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


class CommitUnavailable(Exception):
    """The commit cannot be checked out; the message says why."""


class ScriptFailed(Exception):
    """A script ended with an error; the message has the end of its output."""


@contextmanager
def checkout(commit: str, repository: Path = ROOT) -> Iterator[Path]:
    """Yield a folder with the files of `commit`, and remove it afterwards.

    Raises CommitUnavailable if git, the repository or the commit is missing, as in an unpacked archive or a shallow clone.
    """
    resolved = _git(repository, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
    if resolved.returncode:
        if _git(repository, "rev-parse", "--git-dir").returncode:
            raise CommitUnavailable(f"commit {commit} cannot be checked out: {repository} is not a git repository")
        shallow = _git(repository, "rev-parse", "--is-shallow-repository").stdout.strip() == "true"
        reason = "the clone is shallow; run `git fetch --unshallow`" if shallow else "it was rewritten or never fetched"
        raise CommitUnavailable(f"commit {commit} is not in {repository}: {reason}")
    with tempfile.TemporaryDirectory(prefix="quickstudy-checkout-") as parent:
        folder = Path(parent) / commit
        added = _git(repository, "worktree", "add", "--detach", str(folder), resolved.stdout.strip())
        if added.returncode:
            raise CommitUnavailable(f"commit {commit} cannot be checked out: {added.stderr.strip()[-300:]}")
        try:
            yield folder
        finally:
            _git(repository, "worktree", "remove", "--force", str(folder))


def environment(code: Path, extra: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Return this process's environment, changed so that Python imports the product from `code`."""
    path = os.pathsep.join(str(folder) for folder in (code, code / "client") if folder.is_dir())
    removed = ("REDIS_URL", "CACHE_URL", "PREDICTOR_URL", "INITIALIZATIONS_DIR", "QUICKSTUDY_URL", "QUICKSTUDY_API_KEY")
    inherited = {name: value for name, value in os.environ.items() if name not in removed}
    return {**inherited, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", **extra}


def command(name: str, code: Path) -> list[str]:
    """Return the command line that runs the console script `name` of the checkout `code` with this Python."""
    if (code / "service" / "__main__.py").is_file():  # in such commits the console script is part of the client
        return [sys.executable, "-m", "service"]
    scripts = tomllib.loads((code / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    module, function = scripts[name].split(":")
    return [sys.executable, "-c", f"from {module} import {function}; {function}()"]


def run_script(name: str, *arguments: str, code: Path, seconds: float = 900) -> str:
    """Run a script of this folder with the code of the checkout `code`. Return its standard output.

    Raises ScriptFailed if the script ends with an error.
    """
    arguments = (sys.executable, str(HERE / name), *arguments)
    done = subprocess.run(
        arguments,
        cwd=code,
        env=environment(code),
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise ScriptFailed(f"{name} with the code in {code} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return done.stdout


@contextmanager
def interactive_script(name: str, *arguments: str, code: Path, settings: Mapping[str, str]) -> Iterator[Callable[[str], str]]:
    """Run a script with the code of the checkout `code`. Yield a function that sends it one line.

    The function returns the line that the script answers. It raises ScriptFailed if the script ends instead of answering. At exit
    the script's input is closed, which ends the script.
    """
    process = subprocess.Popen(
        [sys.executable, str(HERE / name), *arguments],
        cwd=code,
        env=environment(code, settings),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert process.stdin is not None and process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def ask(line: str) -> str:
        stdin.write(line + "\n")
        if not (answer := stdout.readline()):
            raise ScriptFailed(f"{name} with the code in {code} ended with {process.wait()}")
        return answer.strip()

    with process:
        yield ask


def _git(repository: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise CommitUnavailable("no other commit can be checked out: git is not installed") from None
