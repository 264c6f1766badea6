"""The code in the documentation runs."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCKS = [
    (page.name, code) for page in sorted(DOCS.glob("*.md")) for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
]


@pytest.mark.parametrize(("page", "code"), BLOCKS, ids=[page for page, _ in BLOCKS])
def test_the_code_of_a_page_runs(page: str, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, page, "exec"), {"__name__": page})
    assert re.fullmatch(r"query loss after one inner step: \d+\.\d\d\n", capsys.readouterr().out)
