"""`make mutants`: change the maths of `metatrain` in small ways, and count those that tests find.

A mutant is one change to one expression: a different operator, comparison, number or reduction, a negated condition, or a missing
`detach`. Mutants are drawn with a seed from all possible ones in the files `MATHS`; annotations, the bounds of options and error
messages are never changed. Each mutant is made in a copy of the project. The tests from `TESTS` that execute the changed line are
run on it, the quickest first. Coverage is measured once to find these tests. A mutant is killed if a test fails or does not end in
time. The three mutants in `NAMED` survived earlier versions of the tests, so they are always tried, in addition to those that are
drawn.

`results/mutants.json` contains how many of the drawn mutants were killed, and lists all survivors.
"""

import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from xml.etree import ElementTree

import click
from coverage import CoverageData
from tqdm import tqdm

from benchmarks.record import RUNS, Row, write

ROOT = Path(__file__).resolve().parents[1]
COVERAGE = RUNS / "mutants.coverage"
TIMES = RUNS / "mutants-tests.xml"
MATHS = (
    "metatrain/deltas/*.py",
    "metatrain/inner/*.py",
    "metatrain/meta/**/*.py",
    "metatrain/models/backbone.py",
    "metatrain/models/inputs/augment.py",
    "metatrain/readouts/*.py",
    "metatrain/serving/bank.py",
    "metatrain/tasks/episodes.py",
    "metatrain/training/evaluate.py",
    "metatrain/training/outer_step.py",
)
TESTS = ("tests/oracles", "tests/metatrain")
COPIED = ("metatrain", "worker", "service", "client", "tests", "benchmarks", "pyproject.toml", "README.md", "docs")
SECONDS = 900
"""Time limit for the tests of one mutant. If they take longer, the mutant counts as killed: it may have caused an endless loop."""

BINARY: dict[type[ast.operator], str] = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Pow: "*"}
COMPARED: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
CALLED = {"sum": "mean", "mean": "sum", "min": "max", "max": "min", "amin": "amax", "amax": "amin", "any": "all", "all": "any"}
DROPPED = {"detach", "sqrt", "exp", "log"}
"""Methods whose calls a mutant removes if they have no arguments: `x.detach()` becomes `x`."""


@dataclass(frozen=True)
class Mutant:
    """One change: `before` at `line` and `column` (in characters) of the file `path` becomes `after`."""

    path: str
    line: int
    column: int
    before: str
    after: str

    def apply(self, source: str) -> str:
        lines = source.splitlines(keepends=True)
        offset = sum(map(len, lines[: self.line - 1])) + self.column
        assert source.startswith(self.before, offset), f"{self}: not in the file"
        return source[:offset] + self.after + source[offset + len(self.before) :]


NAMED = (
    ("metatrain/inner/supervised.py", "loss + self.anchor * drift", "loss + 0.5 * self.anchor * drift"),
    (
        "metatrain/training/outer_step.py",
        "config.average * state.average[name] + (1 - config.average) * state.leaves[name]",
        "(1 - config.average) * state.average[name] + config.average * state.leaves[name]",
    ),
    ("metatrain/meta/metagrad.py", "h + how.damping * u[name]", "h + 2 * how.damping * u[name]"),
)
"""(file, code, changed code): halve the anchor, swap the weights of the moving average, double iMAML's damping."""


def named_mutants() -> list[Mutant]:
    """Return the mutants of `NAMED`.

    Raises ValueError unless the code to change occurs exactly once in its file.
    """
    found = []
    for path, before, after in NAMED:
        source = (ROOT / path).read_text()
        if source.count(before) != 1:
            raise ValueError(f"{path}: expected {before!r} once, got {source.count(before)} times")
        head = source[: source.index(before)]
        found.append(Mutant(path, head.count("\n") + 1, len(head) - head.rfind("\n") - 1, before, after))
    return found


def every_mutant() -> list[Mutant]:
    """Return all possible mutants of the files `MATHS`, in a fixed order."""
    paths = sorted({path for pattern in MATHS for path in ROOT.glob(pattern)})
    return [mutant for path in paths for mutant in mutants_of(path)]


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Yield all possible mutants of one file."""
    source = path.read_text()
    lines = source.splitlines()

    def at(node: ast.expr, after: str) -> Mutant:
        before = ast.get_source_segment(source, node) or ""
        column = len(lines[node.lineno - 1].encode()[: node.col_offset].decode())
        return Mutant(str(path.relative_to(ROOT)), node.lineno, column, before, after)

    for node in computations(ast.parse(source)):
        for after in changes(node, source):
            mutant = at(node, after)
            if mutant.before != after:
                yield mutant


def computations(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield the expressions of a syntax tree that may be mutated.

    Annotations, decorators, types, declarations of options, f-strings, `raise` and `assert` are left out.
    """
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, (ast.Raise, ast.JoinedStr, ast.Assert)) or _declares(child):
                continue
            if isinstance(child, ast.expr):
                yield child
            yield from computations(child)


def _declares(node: ast.AST) -> bool:
    if isinstance(node, ast.Subscript):
        return isinstance(node.value, ast.Name) and node.value.id in ("Literal", "Annotated", "ClassVar", "Callable", "Mapping")
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Field", "TypeVar", "Differentiation")
    )


def changes(node: ast.expr, source: str) -> Iterator[str]:
    """Yield the code of each mutated form of an expression; nothing if there is none."""

    def code(part: ast.expr) -> str:
        return f"({ast.get_source_segment(source, part)})"

    match node:
        case ast.BinOp(left, op, right) if type(op) in BINARY:
            yield f"({code(left)} {BINARY[type(op)]} {code(right)})"
        case ast.UnaryOp(ast.USub() | ast.Not(), operand):
            yield code(operand)
        case ast.Compare(left, [op], [right]):
            yield f"({code(left)} {COMPARED[type(op)]} {code(right)})"
        case ast.BoolOp(op, values):
            yield "(" + (" or " if isinstance(op, ast.And) else " and ").join(map(code, values)) + ")"
        case ast.Constant(value=bool(value)):
            yield str(not value)
        case ast.Constant(value=int(value)):
            yield str(value + 1)
        case ast.Constant(value=float(value)):
            yield str(2 * value if value else 1.0)
        case ast.IfExp(test, body, orelse):
            yield f"({code(orelse)} if {code(test)} else {code(body)})"
        case ast.Call(ast.Attribute(value, name), args, keywords):
            given = [ast.get_source_segment(source, part) or "" for part in (*args, *(k.value for k in keywords))]
            names = [""] * len(args) + [f"{k.arg}=" if k.arg else "**" for k in keywords]
            if name in CALLED:
                yield f"{code(value)}.{CALLED[name]}({', '.join(map(''.join, zip(names, given, strict=True)))})"
            elif name in DROPPED and not given:
                yield code(value)
        case ast.Call(ast.Name(name), args, keywords) if name in ("min", "max") and not keywords:
            yield f"{CALLED[name]}({', '.join(ast.get_source_segment(source, part) or '' for part in args)})"


def record_coverage() -> CoverageData:
    """Run `TESTS`, and return which test runs which lines.

    This coverage and the duration of each test are stored in runs/. If they are stored there already, the tests are not run again.
    """
    if not COVERAGE.exists():
        COVERAGE.parent.mkdir(exist_ok=True)
        config = COVERAGE.with_suffix(".ini")
        config.write_text(f"[run]\nsource = metatrain\ndynamic_context = test_function\ndata_file = {COVERAGE}\n")
        subprocess.run(
            [sys.executable, "-m", "coverage", "run", f"--rcfile={config}", "-m", "pytest", "-q", f"--junitxml={TIMES}", *TESTS],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
        )
    data = CoverageData(str(COVERAGE))
    data.read()
    return data


def seconds_of_tests() -> dict[str, float]:
    """Return the duration of each test function in seconds.

    The keys are names as coverage writes them, such as `tests.oracles.test_inner.test_sgd_matches_pytorch`.
    """
    seconds: dict[str, float] = defaultdict(float)
    for case in ElementTree.parse(TIMES).iter("testcase"):
        seconds[f"{case.attrib['classname']}.{case.attrib['name'].split('[')[0]}"] += float(case.attrib["time"])
    return seconds


def tests_of(mutant: Mutant, data: CoverageData, seconds: Mapping[str, float]) -> list[str]:
    """Return the tests that run the mutant's line, the quickest first.

    For a line that runs only at import, return the tests that run any line of its file.
    """
    by_line = data.contexts_by_lineno(str(ROOT / mutant.path))
    line = max((line for line in by_line if line <= mutant.line), default=0)  # a statement may begin on an earlier line
    contexts = set(by_line.get(line, [])) - {""} or set(chain.from_iterable(by_line.values())) - {""}
    names = [context.rpartition(".") for context in sorted(contexts, key=lambda context: (seconds.get(context, 0.0), context))]
    return [f"{module.replace('.', '/')}.py::{function}" for module, _, function in names]


def survives(mutant: Mutant, tests: Sequence[str], copy: Path) -> bool:
    """Return True if all these tests pass with the mutant in `copy`, a copy of the project."""
    file = copy / mutant.path
    source = file.read_text()
    file.write_text(mutant.apply(source))
    try:
        return run_pytest(copy, "-x", *tests) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        file.write_text(source)


def run_pytest(copy: Path, *arguments: str) -> int:
    """Run pytest in a copy of the project and return its exit status. Raises TimeoutExpired."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=copy,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{copy}:{copy / 'client'}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        timeout=SECONDS,
        check=False,
    ).returncode


@click.command()
@click.option("--seed", default=1, show_default=True, help="Draws the mutants.")
@click.option("--count", default=100, show_default=True, help="How many to draw, besides the three that are always tried.")
@click.option("--jobs", default=2, show_default=True, help="How many to try at once.")
def main(seed: int, count: int, jobs: int) -> None:
    data, possible = record_coverage(), every_mutant()
    seconds = seconds_of_tests()
    drawn = [*named_mutants(), *random.Random(seed).sample(possible, count)]
    tried = RUNS / f"mutants-{seed}.jsonl"
    known = (
        {json.dumps(row["mutant"]): row["survived"] for row in map(json.loads, tried.read_text().splitlines())}
        if tried.exists()
        else {}
    )
    copies: SimpleQueue[Path] = SimpleQueue()

    def judge(mutant: Mutant) -> bool:
        copy = copies.get()
        try:
            tests = tests_of(mutant, data, seconds)
            survived = not tests or survives(mutant, tests, copy)
        finally:
            copies.put(copy)
        with tried.open("a") as file:
            file.write(json.dumps({"mutant": asdict(mutant), "survived": survived}) + "\n")
        return survived

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        for number in range(jobs):
            copies.put(copy_project(Path(folder) / str(number)))
        left = [mutant for mutant in drawn if json.dumps(asdict(mutant)) not in known]
        results = tqdm(pool.map(judge, left), total=len(left), unit="mutant")
        known |= {json.dumps(asdict(mutant)): survived for mutant, survived in zip(left, results, strict=True)}
    survivors = [mutant for mutant in drawn if known[json.dumps(asdict(mutant))]]
    for mutant in survivors:
        print(f"{mutant.path}:{mutant.line}: {mutant.before}  →  {mutant.after}")
    killed = sum(mutant not in survivors for mutant in drawn[len(NAMED) :])
    rows = [Row("mutants of metatrain", "tests", "killed", killed, ""), Row("mutants of metatrain", "tests", "of", count, "")]
    print(f"{killed} of {count} killed; wrote {write('mutants', rows, seed=seed, survivors=[asdict(m) for m in survivors])}")


def copy_project(folder: Path) -> Path:
    """Copy what the tests need into a folder, and return it.

    Raises RuntimeError if pytest cannot collect the tests there, because every mutant would then seem to be killed.
    """
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
    if (status := run_pytest(folder, "--collect-only", *TESTS)) != 0:
        raise RuntimeError(f"the tests cannot be collected in a copy of the project: pytest ended with status {status}")
    return folder


if __name__ == "__main__":
    main()
