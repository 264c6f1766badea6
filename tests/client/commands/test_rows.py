"""The FILE of a command: its columns, standard input, and hints about labels."""

import csv
import io
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from quickstudy.commands.cli import command_line
from quickstudy.commands.rows import open_rows
from quickstudy.tables import Format, TableError

from tests.client.scripted import Reply, problem, serving

Example = tuple[int, str, str]


def examples(path: Path, chosen: Format | None = None, text: str | None = None, label: str | None = None) -> list[Example]:
    with open_rows(str(path), chosen, text, label) as rows:
        return rows.examples(text, label)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"text,label\na,x\n", "csv"),
        (b"text;label\na;x\n", "csv"),
        (b"text\tlabel\na\tx\n", "tsv"),
        (b' {"text": "a", "label": "x"}\n', "jsonl"),
        (b'\n[{"text": "a", "label": "x"}]\n', "json"),
    ],
)
def test_the_format_of_standard_input_follows_from_its_beginning(
    monkeypatch: pytest.MonkeyPatch, content: bytes, kind: str
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(content))
    monkeypatch.setattr("sys.stdin", stdin)
    with open_rows("-", None) as rows:
        assert rows.format == kind and [(text, label) for _, text, label in rows.examples(None, None)] == [("a", "x")]
    assert not stdin.closed


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,input,label,intent\na,b,x,y\n")
    with pytest.raises(TableError, match="more than one is named 'text' or 'input': name the column of the texts with --text"):
        examples(path)
    assert examples(path, text="input", label="intent") == [(2, "b", "y")]
    with pytest.raises(TableError, match=r"--label-column: no column 'intents'; .* 'text', 'input', 'label', 'intent'"):
        examples(path, text="input", label="intents")
    path.write_text("utterance,category\na,x\n")
    both = "columns are 'utterance', 'category': name those of the texts and the labels with --text-column and --label-column"
    with pytest.raises(TableError, match=both):
        examples(path)
    with pytest.raises(TableError, match="and none is named 'label': name the column of the labels with --label-column"):
        examples(path, text="utterance")
    assert examples(path, text="utterance", label="category") == [(2, "a", "x")]


def test_a_chosen_column_helps_to_find_the_separator(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("what, exactly;topic\nhi, you;x\n")
    assert examples(path, text="what, exactly", label="topic") == [(2, "hi, you", "x")]
    with pytest.raises(TableError, match="line 1: expected one separator in the header, got commas and semicolons"):
        examples(path)


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)


@pytest.mark.parametrize("kind", ["csv", "tsv"])
@given(rows=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5))
def test_written_rows_are_read_back(kind: Format, rows: list[tuple[str, str]]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter="\t" if kind == "tsv" else ",", quoting=csv.QUOTE_ALL).writerows([("text", "label"), *rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(buffer.getvalue().encode())))
        with open_rows("-", kind) as found:
            with_a_value = [row for row in rows if "".join(row).strip()]
            assert [(row["text"], row["label"]) for _, row in found.entries] == with_a_value


def refused(path: Path) -> list[str]:
    """Adapt to a file with a service that refuses all examples, and return the lines on stderr."""
    with serving(problem(422, "refused")) as server:
        done = CliRunner().invoke(command_line(), ["adapt", str(path), "--url", server.url])
    assert done.exit_code == 1 and len(server.requests) == 1
    return done.stderr.splitlines()


@pytest.mark.parametrize(
    ("labels", "line", "label"),
    [
        (["a", "b", "a;b", "a;b"], 4, "'a;b'"),
        (["a", "a | b", "b"], 3, "'a | b'"),
        (["x", "['x', 'y']"], 3, "\"['x', 'y']\""),
        (["x", '["x"]'], 3, "'[\"x\"]'"),
        (["refund", "bill", "refund/bill"], 4, "'refund/bill'"),
    ],
)
def test_a_label_that_looks_like_several_gets_a_hint_and_is_sent(tmp_path: Path, labels: list[str], line: int, label: str) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((f"text {n}", one) for n, one in enumerate(labels))])
    hint, error = refused(path)
    assert hint == f"hint: {path}, line {line}: the label {label} looks like several labels; an example has one label"
    assert error == "error: refused"


@pytest.mark.parametrize("folder", ["\x1b[31mred\x07", "very long " * 20])
def test_a_hint_is_one_short_line_whatever_the_name_of_the_file(tmp_path: Path, folder: str) -> None:
    path = tmp_path / folder / f"{folder}.csv"
    path.parent.mkdir()
    path.write_text(f"text,label\na,{'x' * 70}\nb,y\nc,{'x' * 70};y\n")
    hint, _ = refused(path)
    assert hint.startswith("hint: ") and ", line 4: the label" in hint and hint.isprintable() and len(hint) <= 300


@pytest.mark.parametrize("labels", [["gym/off", "gym/on"], ["a;b", "c;d"], ["(x)", "[y]"], ["C++", "C", "R&D"]])
def test_a_label_with_marks_alone_gets_no_hint(tmp_path: Path, labels: list[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"text {n},{label}\n" for n, label in enumerate(labels)))
    assert refused(path) == ["error: refused"]


def test_many_hints_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    letters = "abcdefgh"
    rows = [*letters, *(f"{one};{two}" for one in letters for two in letters if one < two)]
    path.write_text("text,label\n" + "".join(f"text {n},{label}\n" for n, label in enumerate(rows)))
    hints = refused(path)[:-1]
    assert len(hints) == 5 and hints[-1].endswith("; 23 further labels look so too")


def test_a_limit_on_rows_names_the_file_and_their_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "a,x\nb,y\n" * 20)
    for command, field in (("adapt",), "support"), (("adapters", "score", "a1"), "examples"):
        detail = f"{field}: expected 1 to 10 examples, got 40 examples"
        refusal = Reply(422, {"title": "invalid", "detail": detail, "errors": [{"field": field}]})
        with serving(refusal) as server:
            done = CliRunner().invoke(command_line(), [*command, str(path), "--url", server.url])
        assert done.exit_code == 1 and done.stderr == f"error: {path}, 40 rows: {detail}\n"
