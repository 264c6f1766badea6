"""CLI commands against a service, and the commands and Python code shown in the documentation."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from service.__main__ import main
from tests.client.scripted import ADAPTED, ADAPTER, Reply, problem, serving
from tests.end_to_end.client.conftest import MAX_INPUTS
from tests.end_to_end.conftest import ROOT, Served, free_port

EXAMPLES = ROOT / "service" / "examples" / "library_examples.csv"
QUESTIONS = ROOT / "service" / "examples" / "library_questions.csv"
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLIENT_PAGE = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
LABELS = {"renew", "fines", "opening_hours", "membership", "reserve"}


def run(url: str, *arguments: object, stdin: str | None = None, **environment: str) -> Result:
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(main, words, input=stdin, env={"QUICKSTUDY_URL": url, "QUICKSTUDY_API_KEY": "", **environment})


def run_ok(url: str, *arguments: object, stdin: str | None = None) -> str:
    done = run(url, *arguments, stdin=stdin)
    assert done.exit_code == 0, done.output
    return done.stdout


def read_json(url: str, *arguments: object) -> Any:
    return json.loads(run_ok(url, *arguments, "--json"))


@pytest.fixture(scope="module")
def adapter(service: Served) -> str:
    return run_ok(service.url, "adapt", EXAMPLES, "--name", "library", "--tag", "en", "--wait").strip()


def blocks(language: str, page: str) -> list[str]:
    """Return the code blocks in this language from a Markdown text."""
    code: list[str] = re.findall(rf"```{language}\n(.*?)```", page, re.S)
    return code


PYTHON = [*blocks("python", README), *blocks("python", CLIENT_PAGE)]


def test_the_commands_of_the_readme_run(service: Served, tmp_path: Path) -> None:
    """Run the README's commands unchanged, in a folder that looks like a checkout."""
    (tmp_path / "service").symlink_to(ROOT / "service")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    command = tmp_path / ".venv" / "bin" / "quickstudy"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m service "$@"\n')
    command.chmod(0o755)
    commands = blocks("sh", README.split("\n## From the command line\n")[1].split("\n## ")[0])[0]
    assert commands.count(".venv/bin/quickstudy ") == 2
    environment = {**os.environ, "QUICKSTUDY_URL": service.url, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}"}
    subprocess.run(["bash", "-euo", "pipefail", "-c", commands], cwd=tmp_path, env=environment, check=True, timeout=120)
    rows, questions = (list(csv.DictReader(path.read_text("utf-8").splitlines())) for path in (tmp_path / "answers.csv", QUESTIONS))
    assert [{name: row[name] for name in ("id", "text", "branch")} for row in rows] == questions
    assert list(rows[0]) == ["id", "text", "branch", "label", "probability"]
    assert {row["label"] for row in rows} <= LABELS and all(1 / 5 <= float(row["probability"]) <= 1 for row in rows)


def test_the_readme_and_the_client_page_show_both_clients() -> None:
    assert ["import Client" in PYTHON[0], "import AsyncClient" in PYTHON[1]] == [True, True]


@pytest.mark.parametrize("code", PYTHON)
def test_the_python_code_of_the_readme_and_the_client_page_runs(
    service: Served, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "http://localhost:8000" in code
    exec(compile(code.replace("http://localhost:8000", service.url), "page", "exec"), {"__name__": "page"})
    assert re.search(r"dining|wifi", capsys.readouterr().out)


def test_adapt_with_and_without_dry_run(service: Served, adapter: str) -> None:
    shown = run_ok(service.url, "adapt", EXAMPLES, "--dry-run", "--name", "library")
    assert shown.startswith(f"{adapter} ready, 40 examples, 10 steps\n") and re.search(r"^renew +8$", shown, re.M)
    dry = read_json(service.url, "adapt", EXAMPLES, "--dry-run", "--steps", "3")
    assert dry["status"] == "new" and dry["steps"] == 3 and dry["labels"]["fines"] == 8
    lines = "".join(
        json.dumps({"input": f"{word} please", "label": word, "n": i}) + "\n" for i, word in enumerate(["stop", "go"] * 2)
    )
    made = json.loads(run_ok(service.url, "adapt", "-", "--wait", "--json", "--ttl", "60", "--label-words", stdin=lines))
    assert made["status"] == "ready" and made["labels"] == ["go", "stop"] and made["label_words"]
    table = "text\tlabel\n" + "".join(f"{word} now\t{word}\n" for word in ("stop", "go"))
    assert run_ok(service.url, "adapt", "-", "--initialization", "frozen-prototypes", stdin=table).strip().isalnum()


def test_adapt_says_whether_label_words_are_used(service: Served) -> None:
    orders, closings = ("order pizza", "order pizza now"), ("please close account", "close my account")
    rows = [*((text, "order") for text in orders), *((text, "close account") for text in closings)]
    exchanged = {"order": "close account", "close account": "order"}
    for examples, expected in ((rows, "with"), ([(text, exchanged[label]) for text, label in rows], "without")):
        table = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in examples)
        done = run(service.url, "adapt", "-", "--wait", "--initialization", "frozen-prototypes", stdin=table)
        assert done.stderr.splitlines()[-1] == f"ready, {expected} the words of its labels as examples"
        asked = run(service.url, "adapt", "-", "--wait", "--no-label-words", "--initialization", "frozen-prototypes", stdin=table)
        assert asked.stderr.splitlines()[-1] == "ready"


def test_predict_keeps_the_columns_of_many_rows(service: Served, adapter: str, tmp_path: Path) -> None:
    many = tmp_path / "many.tsv"
    texts = ["may I renew it", 'a "fine", is it?'] * 300
    with many.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([("label", "text"), *((f"l{i}", text) for i, text in enumerate(texts))])
    done = run(service.url, "predict", adapter, many, "--top-k", 2)
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    added = ["predicted_label", "predicted_probability", "predicted_label_2", "predicted_probability_2"]
    assert list(rows[0]) == ["label", "text", *added] and [row["text"] for row in rows] == texts and len(rows) > 256 > MAX_INPUTS
    assert all(float(row["predicted_probability"]) >= float(row["predicted_probability_2"]) for row in rows)
    assert {row["predicted_label"] for row in rows} <= LABELS


def test_predict_reads_and_writes_json_lines(service: Served, adapter: str) -> None:
    line = json.dumps({"input": "when do you open", "n": [1, {"a": None}]})
    (row,) = map(json.loads, run_ok(service.url, "predict", adapter, "-", stdin=line).splitlines())
    assert row["n"] == [1, {"a": None}] and row["prediction"]["label"] in LABELS
    found = row["prediction"]["probabilities"]
    assert set(found) == LABELS and list(found.values()) == sorted(found.values(), reverse=True)
    (as_csv,) = csv.DictReader(io.StringIO(run_ok(service.url, "predict", adapter, "-", "--output", "csv", stdin=line)))
    assert as_csv["n"] == '[1, {"a": null}]' and as_csv["label"] == row["prediction"]["label"]
    array = json.dumps([{"text": "when do you open"}, {"text": "a fine?"}])
    predicted = run_ok(service.url, "predict", adapter, "-", stdin=array).splitlines()
    assert [json.loads(line)["text"] for line in predicted] == ["when do you open", "a fine?"]
    pandas = ",text,note\n0,when do you open,\n1,a fine?,x\n"
    rows = csv.DictReader(io.StringIO(run_ok(service.url, "predict", adapter, "-", stdin=pandas)))
    assert [(row["text"], row["note"]) for row in rows] == [("when do you open", ""), ("a fine?", "x")]
    texts = ("--text", "a fine?", "--text", "one, more")
    one, two = csv.DictReader(io.StringIO(run_ok(service.url, "predict", adapter, *texts)))
    assert one["text"] == "a fine?" and two["text"] == "one, more"
    assert len(run_ok(service.url, "predict", adapter, *texts, "--json", "--top-k", 1).splitlines()) == 2


def test_an_error_in_a_row_names_the_file_and_the_line(service: Served, adapter: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\n" + "fine\n" * 300 + '" "\n')
    done = run(service.url, "predict", adapter, path)
    assert done.exit_code == 2 and done.stdout == "" and f"{path}, line 302: expected a text" in done.stderr
    path.write_text("text\n" + "fine\n" * 300 + "x" * 10_001 + "\n")
    done = run(service.url, "predict", adapter, path)
    assert done.exit_code == 1 and f"error: {path}, line 302: expected at most 10000 characters" in done.stderr
    path.write_text("text,label\nfine,a\nwell,b\nfine,b\n")
    done = run(service.url, "adapt", path)
    assert done.exit_code == 1 and f"error: {path}, line 4: label: expected 'a'" in done.stderr


def test_adapters_are_listed_shown_scored_and_deleted(service: Served, adapter: str) -> None:
    listed = run_ok(service.url, "adapters", "list", "--tag", "en")
    assert re.search(rf"^{adapter} +ready +library +en +5 +40 +\d", listed, re.M)
    assert [entry["adapter_id"] for entry in read_json(service.url, "adapters", "list", "--name", "library")] == [adapter]
    shown = run_ok(service.url, "adapters", "show", adapter)
    assert re.search(r"^labels +fines, membership, opening_hours, renew, reserve$", shown, re.M)
    assert read_json(service.url, "adapters", "show", adapter)["labels"] == sorted(LABELS)
    assert run_ok(service.url, "adapters", "pin", adapter) == f"{adapter} pinned\n"
    assert run_ok(service.url, "adapters", "unpin", adapter) == f"{adapter} unpinned\n"
    scored = run_ok(service.url, "adapters", "score", adapter, EXAMPLES)
    assert re.match(r"40 examples, accuracy \d+\.\d%, macro F1 \d\.\d{3}\n", scored) and re.search(
        r"^renew +\d\.\d{3}", scored, re.M
    )
    score = read_json(service.url, "adapters", "score", adapter, EXAMPLES)
    assert [line - 2 for line in score["mistaken_lines"]] == score["mistakes"]
    printed = run_ok(service.url, "adapters", "events", adapter).splitlines()
    assert sum(line.startswith("step ") for line in printed) == 10 and printed[-1] == "end, ready"
    other = run_ok(service.url, "adapt", EXAMPLES, "--steps", "1").strip()
    events = [json.loads(line) for line in run_ok(service.url, "adapters", "events", other, "--json").splitlines()]
    assert events[-1]["event"] == "end" and events[-1]["adapter"]["adapter_id"] == other
    assert run_ok(service.url, "adapters", "delete", other) == f"{other} deleted\n"
    assert run(service.url, "adapters", "show", other).exit_code == 1


def test_an_alias_is_set_with_conditions_used_and_deleted(service: Served, adapter: str) -> None:
    assert run_ok(service.url, "alias", "set", "library.live", adapter, "--new") == f"library.live → {adapter}\n"
    again = run(service.url, "alias", "set", "library.live", adapter, "--new")
    assert again.exit_code == 1 and again.stderr.startswith("error: ")
    assert read_json(service.url, "alias", "set", "library.live", adapter, "--expected", adapter)["previous"] == adapter
    assert re.search(rf"^library.live +{adapter} ", run_ok(service.url, "alias", "list"), re.M)
    assert [entry["alias"] for entry in read_json(service.url, "alias", "list")] == ["library.live"]
    assert len(run_ok(service.url, "predict", "library.live", QUESTIONS).splitlines()) == 9
    assert re.search(rf"^{adapter} ", run_ok(service.url, "alias", "show", "library.live"), re.M)
    assert "no adapter that it pointed at before is usable" in run(service.url, "alias", "rollback", "library.live").stderr
    assert run_ok(service.url, "alias", "delete", "library.live") == "library.live deleted\n"
    assert run_ok(service.url, "alias", "list") == "alias  adapter  moved\n"


def test_status_shows_readiness_initializations_and_usage(service: Served) -> None:
    shown = run_ok(service.url, "status")
    assert (
        shown.startswith("ready\n") and re.search(r"^default +\S+ ", shown, re.M) and re.search(r"^MAX_ADAPTERS +\d", shown, re.M)
    )
    found = read_json(service.url, "status")
    assert found["ready"] and found["usage"]["tenant"] == "default" and len(found["initializations"]) == 6


def test_exit_code_1_is_a_refusal_or_a_failed_job(service: Served) -> None:
    done = run(service.url, "predict", "nowhere", "--text", "hello")
    assert done.exit_code == 1 and done.stderr.startswith("error: ") and done.stdout == ""
    failed = {**ADAPTER, "status": "failed", "error": "the loss is not finite"}
    replies = (Reply(202, {**ADAPTED, "status": "queued"}), problem(404), Reply(200, failed))
    with serving(*replies) as server:
        done = run(server.url, "adapt", EXAMPLES, "--wait")
    assert done.exit_code == 1 and done.stderr.endswith("error: the loss is not finite\n")


@pytest.mark.parametrize(
    "wrong",
    [
        ("adapt",),
        ("adapt", "nowhere.csv"),
        ("adapt", QUESTIONS),
        ("predict", "a1"),
        ("predict", "a1", QUESTIONS, "--text", "both"),
        ("predict", "a1", QUESTIONS, "--text-column", "nowhere"),
        ("alias", "set", "a", "b", "--new", "--expected", "c"),
        ("adapters", "list", "--url", "nowhere"),
    ],
)
def test_exit_code_2_is_wrong_usage(wrong: tuple[object, ...]) -> None:
    assert run("http://localhost:9", *wrong).exit_code == 2


@pytest.mark.parametrize(
    "wrong",
    [
        ("adapters", "show", ""),
        ("adapters", "events", ".."),
        ("adapters", "delete", "a1", "secret\udcff"),
        ("adapters", "list", "--name", "secret\udcff"),
        ("adapt", QUESTIONS, "--tag", "secret\udcff"),
        ("predict", "a1", "--text", "secret\udcff"),
        ("alias", "delete", "."),
        ("status", "--url", "http://secret\udcff"),
    ],
)
def test_an_unusable_argument_is_one_line_that_does_not_show_it(wrong: tuple[object, ...]) -> None:
    with serving() as server:
        done = run(server.url, *wrong)
    assert done.exit_code == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "secret" not in done.output and not server.requests


def test_exit_code_3_is_out_of_reach() -> None:
    done = run(f"http://127.0.0.1:{free_port()}", "status")
    assert done.exit_code == 3 and re.match(r"error: http://127.0.0.1:\d+ is out of reach: ", done.stderr)
    assert done.stderr.endswith("; choose the service with --url or QUICKSTUDY_URL\n")


def test_exit_code_4_is_not_authorised(service: Served) -> None:
    key = "qs_0123456789ab_" + "s" * 43
    done = run(service.url, "status", QUICKSTUDY_API_KEY=key)
    assert done.exit_code == 4 and done.stderr.startswith("error: ") and key not in done.output
    with serving(problem(403, "the key has not the scope adapt")) as server:
        done = run(server.url, "adapters", "delete", "a1", QUICKSTUDY_API_KEY=key)
    assert done.exit_code == 4 and done.stderr == "error: the key has not the scope adapt\n"
