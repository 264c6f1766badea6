"""The command `predict`: the rows that it refuses, and the form of its output."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from quickstudy.commands.cli import command_line

from tests.client.scripted import Reply, Server, serving

SWALLOWED = 'text,label,note\na,x,"n1\nb,y,n2\nc,x,n3\nd,y,n4"\ne,y,n5\n'
TORN = 'shut\tclose\n"Name\tPrice\nTea"\ttable\nhello\tgreet\n'


def answer(rows: int) -> Reply:
    predictions = [{"label": "x", "probabilities": {"x": 0.75}}] * rows
    return Reply(200, {"adapter_id": "a1", "digest": "d", "predictions": predictions, "truncated": []})


def predict(server: Server, path: Path | str, *options: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(command_line(), ["predict", "a1", str(path), "--url", server.url, *options], input=stdin)


def written(path: Path, content: str) -> Path:
    path.write_bytes(content.encode())
    return path


@pytest.mark.parametrize(("name", "content", "line"), [("a.csv", SWALLOWED, 2), ("a.tsv", f"text\tlabel\n{TORN}", 3)])
@pytest.mark.parametrize("piped", [False, True])
def test_swallowed_and_torn_rows_are_refused_before_anything_is_sent(
    tmp_path: Path, name: str, content: str, line: int, piped: bool
) -> None:
    """Predict the rows of a short input, which is also read whole if it is piped."""
    path = "-" if piped else written(tmp_path / name, content)
    with serving() as server:
        done = predict(server, path, stdin=content)
    assert done.exit_code == 2 and not server.requests and not done.stdout
    assert done.stderr.startswith(f"error: {'standard input' if piped else path}, line {line}: a quote opens")


def test_swallowed_rows_of_a_long_pipe_are_an_error_at_the_end() -> None:
    with serving(answer(256)) as server:
        done = predict(server, "-", stdin=SWALLOWED + "more,x,n\n" * 300)
    assert done.exit_code == 2 and len(done.stdout.splitlines()) > 256
    assert done.stderr.splitlines()[-1] == (
        "error: standard input, line 2: a quote opens here, and its value runs over the next 3 lines, which are rows"
    )


def test_a_value_with_a_lone_carriage_return_is_quoted(tmp_path: Path) -> None:
    rows = [["text", "note"], ["a\rb", "c"], ["d", "e\r\nf"], ["g", "plain"]]
    buffer = io.StringIO()
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows(rows)
    with serving(answer(3)) as server:
        done = predict(server, written(tmp_path / "a.csv", buffer.getvalue()))
    expected = b'text,note,label,probability\n"a\rb",c,x,0.75\nd,"e\r\nf",x,0.75\ng,plain,x,0.75\n'
    assert done.stdout_bytes == expected
    again = list(csv.reader(io.StringIO(done.stdout_bytes.decode(), newline=""), strict=True))
    assert [row[:2] for row in again] == rows


def test_a_key_of_the_input_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with serving(answer(2)) as server:
        done = predict(server, written(path, '{"text": "a", "prediction": "mine"}\n{"text": "b"}\n'))
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["prediction"] == "mine" and first["predicted_prediction"]["label"] == "x"
    assert second == {"text": "b", "predicted_prediction": first["predicted_prediction"]}

    with serving(answer(2)) as server:
        done = predict(server, written(path, '{"text": "a"}\n{"text": "b", "prediction": 1}\n'))
    assert done.exit_code == 2
    assert done.stderr == f"error: {path}, line 2: expected no key 'prediction', which the first row does not have\n"
    with serving() as server:
        done = predict(server, written(path, '{"text": "a", "prediction": 1, "predicted_prediction": 2}\n'))
    assert done.exit_code == 2 and "expected no column named as one of the output's, 'predicted_prediction'" in done.stderr


@pytest.mark.parametrize("number", ["1e400", "-1e999"])
@pytest.mark.parametrize(("name", "place"), [("a.jsonl", "line 2"), ("a.json", "line 1 (row 2)")])
def test_a_number_that_would_become_infinity_is_refused(tmp_path: Path, number: str, name: str, place: str) -> None:
    rows = ['{"text": "a", "n": 1e308}', f'{{"text": "b", "n": {number}}}']
    path = written(tmp_path / name, "\n".join(rows) if name == "a.jsonl" else f"[{', '.join(rows)}]")
    with serving() as server:
        done = predict(server, path)
    assert done.exit_code == 2 and not server.requests
    assert done.stderr == f"error: {path}, {place}: expected numbers of at most 1.8e308, got {number}\n"


def test_the_place_in_the_file_replaces_that_in_the_request(tmp_path: Path) -> None:
    detail = "inputs[88]: expected at most 4000 characters, got 400000 characters"
    refusal = Reply(422, {"title": "Invalid", "detail": detail, "errors": [{"field": "inputs[88]"}]})
    path = written(tmp_path / "a.json", json.dumps([{"text": f"text {i}"} for i in range(601)]))
    with serving(answer(256), answer(256), refusal) as server:
        done = predict(server, path)
    assert done.exit_code == 1
    assert done.stderr.endswith(f"error: {path}, line 1 (row 601): expected at most 4000 characters, got 400000 characters\n")


def test_a_reader_that_ends_early_ends_the_command_without_a_message(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "text\n" + "a text of some length\n" * 20_000)
    with serving(*[answer(256)] * 79) as server:
        script = [sys.executable, "-c", "from quickstudy.commands import main; main()"]
        command = [*script, "predict", "a1", str(path), "--url", server.url]
        started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "COLUMNS": "80"})
        assert started.stdout is not None and started.stderr is not None
        assert started.stdout.readline() == b"text,label,probability\n"
        started.stdout.close()
        assert (started.stderr.read(), started.wait(30)) == (b"", 141)
        started.stderr.close()
        server.replies.clear()  # the rest of the answers was not asked for


def test_the_version_is_printed() -> None:
    done = CliRunner().invoke(command_line(), ["--version"])
    assert done.exit_code == 0 and done.stdout.startswith("quickstudy ")


def test_a_label_in_a_message_keeps_its_text(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "text,label\na,as support[0]\nb,y\nc,it's in support[1]\n")
    message = """'as support[0]' as in support[1], and "it's in support[1]" as in support[2], the model's own"""
    labels = {"as support[0]": 1, "y": 2}
    dry = {"adapter_id": "a1", "status": "new", "examples": 3, "labels": labels, "steps": 1, "truncated": []}
    with serving(Reply(200, {**dry, "warnings": [{"field": "support[0].label", "message": message}]})) as server:
        done = CliRunner().invoke(command_line(), ["adapt", str(path), "--dry-run", "--url", server.url])
    expected = """'as support[0]' as in line 3, and "it's in support[1]" as in line 4, the model's own"""
    assert f"warning: line 2: {expected}\n" in done.stdout
