"""The documentation: its code runs, and the files and tests that it names exist."""

import re
from pathlib import Path

import pytest

from service.errors import ClientGone, ServiceError

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
BLOCKS = [
    (page.name, code) for page in sorted(DOCS.glob("*.md")) for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
]


@pytest.mark.parametrize(("page", "code"), BLOCKS, ids=[page for page, _ in BLOCKS])
def test_the_code_of_a_page_runs(page: str, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, page, "exec"), {"__name__": page})
    prints = {"metatrain.md": r"query loss after one inner step: \d+\.\d\d\n"}
    assert re.fullmatch(prints.get(page, ""), capsys.readouterr().out)


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.name)
def test_the_paths_that_a_page_names_exist(page: Path) -> None:
    paths = re.findall(r"`((?:metatrain|worker|service|client|tests|benchmarks|docs)/[\w./-]*)`", page.read_text())
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_each_line_of_the_threat_model_names_an_existing_test() -> None:
    page = (DOCS / "security.md").read_text()
    rows = [line for line in page.partition("## What could be tried")[2].splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    for row in rows:
        named = re.search(r"`(tests/[a-z_/]+\.py)::(test_[a-z_0-9]+)` \|$", row)
        assert named is not None, row
        assert f"def {named[2]}(" in (DOCS.parent / named[1]).read_text(), row


def kinds(error: type[ServiceError]) -> set[type[ServiceError]]:
    return {error}.union(*map(kinds, error.__subclasses__()))


def test_the_api_page_lists_exactly_the_problem_types_with_their_status() -> None:
    page = (DOCS / "api.md").read_text().partition("## Problems")[2].partition("## ")[0]
    listed = re.findall(r"^\| `/problems/([a-z-]+)` \| ([0-9]{3}) \|", page, re.M)
    assert sorted(listed) == sorted(
        (error.kind, str(error.status)) for error in kinds(ServiceError) - {ClientGone}
    )  # ClientGone is never sent, because the client has disconnected
