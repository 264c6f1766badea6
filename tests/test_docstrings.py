"""Every docstring begins with a whole sentence, with a verb, of at most 100 characters."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("metatrain", "worker", "service", "client", "tests", "benchmarks")
MOST = 100
# A first line that begins with one of these says what a thing belongs to or depends on, not what it does.
NOT_A_START = {
    *("what", "of", "how", "whether", "as", "which", "who", "whom", "why", "where", "when", "for", "from", "to", "in", "by"),
    *("with", "without", "beside", "until", "while", "if", "because", "since", "than", "that", "and", "or", "but", "so", "once"),
    *("after", "before"),
}


def first_lines() -> Iterator[tuple[str, str]]:
    """Yield (place, first line) for every docstring."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    continue
                if docstring := ast.get_docstring(node):
                    yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}", docstring.splitlines()[0]


def test_docstrings_begin_with_a_sentence() -> None:
    """Check all first lines. The imperative mood of functions is checked by ruff's rule D401."""
    found = list(first_lines())
    assert len(found) > 1500
    assert not [place for place, line in found if line.split()[0].strip("`,.:").lower() in NOT_A_START]
    assert not [place for place, line in found if len(line) > MOST]
    assert not [place for place, line in found if not line.rstrip().endswith((".", ":", "?", "!"))]
