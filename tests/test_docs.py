"""The documentation: its code runs, and the files, pages and tests that it names exist."""

import re
from pathlib import Path

import pytest

from service.errors import ClientGone, ServiceError
from service.settings import ServiceSettings
from tests import settings_page
from worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
BLOCKS = [
    (page.name, code)
    for page in sorted(DOCS.glob("*.md"))
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    if "http://localhost:8000" not in code  # tests/end_to_end/client/test_commands.py runs these with a service
]


@pytest.mark.parametrize(("page", "code"), BLOCKS, ids=[page for page, _ in BLOCKS])
def test_the_code_of_a_page_runs(page: str, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, page, "exec"), {"__name__": page})
    prints = {"metatrain.md": r"query loss after one inner step: \d+\.\d\d\n"}
    assert re.fullmatch(prints.get(page, ""), capsys.readouterr().out)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_paths_that_a_page_names_exist(page: Path) -> None:
    paths = re.findall(r"`((?:metatrain|worker|service|client|tests|benchmarks|docs)/[\w./-]*)`", page.read_text())
    assert [path for path in paths if not (ROOT / path).exists()] == []


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_fits_on_a_few_screens_and_links_every_page() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120 and max(map(len, lines)) <= 120
    linked = set(re.findall(r"\]\(docs/([a-z]+\.md)\)", "\n".join(lines)))
    assert linked == {page.name for page in DOCS.glob("*.md")}


def test_the_settings_page_is_what_the_classes_say() -> None:
    page = settings_page.PAGE.read_text()
    assert settings_page.table() in page and page == settings_page.with_table(page), "run `make settings`"
    assert WorkerSettings.model_fields.keys() >= settings_page.ONLY_WORKER and "wait_replicas" in WorkerSettings.model_fields


@pytest.mark.parametrize(("package", "others"), [("service", settings_page.ONLY_WORKER), ("worker", settings_page.ONLY_SERVICE)])
def test_a_setting_of_one_process_is_not_read_by_the_other(package: str, others: set[str]) -> None:
    """Check the column "read by" of the settings page."""
    code = "\n".join(path.read_text() for path in sorted((ROOT / package).rglob("*.py")))
    assert others & set(re.findall(r"settings\.([a-z_]+)", code)) == set()
    assert others <= set(ServiceSettings.model_fields)


def test_each_line_of_the_threat_model_names_an_existing_test() -> None:
    page = (DOCS / "security.md").read_text()
    rows = [
        line for line in page.partition("## What could be tried")[2].partition("\n## ")[0].splitlines() if line.startswith("| ")
    ][1:]
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
