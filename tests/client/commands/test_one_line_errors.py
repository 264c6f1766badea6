"""Every error of a command is one short, safe line, with the documented exit code."""

import errno
import os
import subprocess
import sys
import unicodedata
from itertools import pairwise
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from quickstudy.commands.one_line_errors import CommandFailed, OneLineErrors
from quickstudy.one_line import one_line, shown

from metatrain.cli import main as metatrain
from metatrain.errors import DataError
from service.__main__ import main as quickstudy
from tests.end_to_end.conftest import ROOT

LONG = "x" * 3_000
ESCAPE = "\x1b]0;owned\x07\x1b[31mred"
UNREACHABLE = "http://127.0.0.1:1"


def error_line(group: click.Group, *arguments: str) -> tuple[int, str]:
    """Run a command that must fail, and return its exit code and its one line on stderr."""
    done = CliRunner().invoke(group, list(arguments), env={"QUICKSTUDY_URL": UNREACHABLE, "REDIS_URL": ""})
    assert done.stdout == "" and done.stderr.count("\n") == 1 and done.stderr.endswith("\n"), done.output
    line = done.stderr[:-1]
    assert line.startswith("error: ") and len(line) <= 300
    assert not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in line)
    return done.exit_code, line


@pytest.mark.parametrize(
    "arguments",
    [
        ("adapt",),
        ("adapt", "nowhere.csv"),
        ("adapt", "."),
        ("adapt", f"{LONG}.csv"),
        ("adapt", f"{ESCAPE}.csv"),
        ("adapt", "a\nb.csv"),
        ("adapt", "half\udcff.csv"),
        ("adapt", "/proc/self/mem"),
        ("adapt", "a.csv", "--format", f"{ESCAPE}{LONG}"),
        ("adapt", "a.csv", "--steps", LONG),
        ("predict", "a1", "nowhere.csv"),
        ("predict", "a1"),
        ("adapters", "score", "a1", "nowhere.tsv"),
        ("adapters", f"no{ESCAPE}such"),
        ("--no-such-option",),
        (f"{ESCAPE}{LONG}",),
        ("alias", "set", "a"),
        ("status", "--url", f"http://{ESCAPE}"),
        ("keys", "create", "--scope", ESCAPE),
        ("tenants", "set", "acme", "--max-jobs", "-1"),
        ("serve", "--port", "many"),
        ("keys", "create", "--expires", "soon"),
        ("keys", "list", "--unused-for", "long"),
        ("keys", "revoke", f"{ESCAPE}{LONG}"),
        ("audit", "--since", f"{ESCAPE}{LONG}"),
        ("tenants", "set", "acme"),
        ("jobs", "retry"),
        ("jobs", "drop", f"{ESCAPE}{LONG}"),
        ("initializations", "move", "mine"),
        ("initializations", "move", "mine", "xyz"),
        ("initializations", "forget", "xyz"),
        ("predictor", "--listen", f"{ESCAPE}{LONG}"),
    ],
)
def test_wrong_usage_of_quickstudy_is_one_line_and_exits_with_2(arguments: tuple[str, ...]) -> None:
    assert error_line(quickstudy, *arguments)[0] == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("train", "nowhere.yaml"), 1),
        (("train", "."), 1),
        (("train", f"{ESCAPE}{LONG}.yaml"), 1),
        (("train", "half\udcff.yaml"), 1),
        (("train", "/proc/self/mem"), 1),
        (("train", "starter", "--out", "/dev/null/folder"), 1),
        (("upgrade", "nowhere.yaml"), 1),
        (("search", "nowhere.yaml"), 1),
        (("evaluate", "nowhere", "--episodes", "2"), 1),
        (("evaluate", "--data", "nowhere.jsonl", "--episodes", "2"), 1),
        (("evaluate", "--episodes", "1"), 2),
        (("train",), 2),
        (("train", "starter", "--max-steps", ESCAPE), 2),
        ((f"no{ESCAPE}such",), 2),
    ],
)
def test_errors_of_metatrain_are_one_line(arguments: tuple[str, ...], code: int) -> None:
    assert error_line(metatrain, *arguments)[0] == code


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.json", b"[" + b'{"text": "example", "label": "a"}, ' * 4_000 + b"7]", "line 1 (row 4001): expected a JSON object"),
        ("a.csv", f"{ESCAPE}text,{ESCAPE}text\nhi,yo\n".encode(), "line 1: expected "),
        ("a.csv", b"text,label\n" + b'"open,close\n' + b"a,b\n" * 9_000, "line 2: a quote opens a value here and is not closed"),
        ("a.csv", ("a,".join(map(str, range(9_000))) + "\n").encode(), "the columns are "),
        ("a.csv", (f"{LONG},label\nhi,x\n").encode(), "the columns are 'xxx"),
        ("a.tsv", b"text\tlabel\n" + LONG.encode() + b"\n", "line 2: expected 2 values as in the header, got 1"),
        ("a.jsonl", b'{"text": "a", "label": ["' + LONG.encode() + b'"]}', "line 1: expected a label as 'label', got a list"),
        ("a.jsonl", b'{"text": "a", "label": 1' + b"0" * 4_000 + b"}", "line 1: expected a label as 'label', got the number"),
    ],
)
def test_the_content_of_a_file_does_not_get_into_the_line(tmp_path: Path, name: str, content: bytes, line: str) -> None:
    (tmp_path / name).write_bytes(content)
    code, found = error_line(quickstudy, "adapt", str(tmp_path / name), "--dry-run")
    assert code == 2 and line in found and name in found


NINE = "[{}]".format(", ".join(["*{0}"] * 9))
BOMB = ["a: &a [x, x, x, x, x, x, x, x, x]", *(f"{name}: &{name} {NINE.format(one)}" for one, name in pairwise("abcdefghi"))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f'version: "{LONG}"', "version: expected 2, got 'xxx"),
        (f'version: 2\nname: "\\e[31m{LONG}"', "name: "),
        (f"version: 2\n{LONG[:900]}: 1", "no such key"),
        ("a: [", ":1: not YAML: expected the node content"),
        ("name: x\nversion: 1\nversion: 2", ":1: not YAML: the key 'version' is given twice"),
        ("a: 1\nb: 2023-13-45", "not YAML: month must be in 1..12"),
        ("a: " + "[" * 2_000, "not YAML: nested too deeply"),
        ("- " * 3_000 + "x", "not YAML: nested too deeply"),
        ("\x00", "not YAML: "),
        ("\udcff", "expected UTF-8 text"),
        ("&a [*a, *a]", "expected at most 100,000 values, 50 deep, also behind aliases"),
        ("\n".join(BOMB), "expected at most 100,000 values, 50 deep, also behind aliases"),
        ("#" * 1_000_001, "expected a recipe of at most 1,000,000 bytes"),
    ],
)
def test_the_line_of_a_recipe_is_short_and_safe(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content.encode(errors="surrogateescape"))
    code, line = error_line(metatrain, "train", str(path))
    assert code == 1 and "a.yaml" in line and message in line


def test_exceptions_become_lines_by_their_exit_code() -> None:
    class Own(Exception):
        exit_code = 7

    raised: list[BaseException] = []

    @click.group(cls=OneLineErrors)
    def group() -> None:
        pass

    @group.command()
    def fail() -> None:
        raise raised[0]

    no_space = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/full")
    for error, code, line in (
        (Own(f"{ESCAPE}\n\n{LONG}end"), 7, None),
        (DataError("two\nlines"), 1, "error: two lines"),
        (CommandFailed("no", 3), 3, "error: no"),
        (no_space, 1, "error: /tmp/full: No space left on device"),
        (SystemExit(f"error: {ESCAPE}"), 1, "error: �]0;owned��[31mred"),
    ):
        raised[:] = [error]
        assert error_line(group, "fail") == (code, line or error_line(group, "fail")[1])
    raised[:] = [KeyboardInterrupt()]
    assert CliRunner().invoke(group, ["fail"]).exit_code == 130
    raised[:] = [SystemExit(5)]
    assert CliRunner().invoke(group, ["fail"]).exit_code == 5
    raised[:] = [RuntimeError("a fault of the product")]
    assert isinstance(CliRunner().invoke(group, ["fail"]).exception, RuntimeError)
    shown_help = CliRunner().invoke(group, [])
    assert shown_help.exit_code == 2 and "Commands:" in shown_help.output


def test_a_line_keeps_its_beginning_and_its_end() -> None:
    assert one_line("a \n\t b\u2028c") == "a b c"
    assert one_line("\u202eevil\x00\ud800\x7f") == "�evil���"
    assert one_line("👩\u200d💻 क\u094d\u200dष") == "👩\u200d💻 क\u094d\u200dष"
    line = one_line(f"begin {'x' * 100_000} end")
    assert len(line) == 280 and line.startswith("begin ") and line.endswith(" end") and "…" in line
    assert shown(10**10_000) == "a number with many digits" and shown(["secret"]) == "a list" and shown("a\x1b") == r"'a\x1b'"
    assert shown("a" * 81) == f"'{'a' * 80}'…" and shown("\U000e0001" * 80) == repr("\U000e0001" * 8) + "…"


def test_a_process_prints_one_line_too(tmp_path: Path) -> None:
    """Run the real commands, as their streams and their exit codes are those of a process."""
    (tmp_path / "a.csv").write_bytes(b"text,label\nhi\n")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for module, arguments, code in (("service", ["adapt", "a.csv"], 2), ("metatrain.cli", ["train", "nöwhere\udcff"], 1)):
        environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'client'}"
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code and done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
