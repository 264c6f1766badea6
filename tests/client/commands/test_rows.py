"""Reading rows from CSV, TSV and JSON Lines files."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quickstudy.commands.rows import Format, UnreadableRows, open_rows

Example = tuple[int, str, str]


def examples(path: Path, chosen: Format | None = None, text: str | None = None, label: str | None = None) -> list[Example]:
    with open_rows(str(path), chosen) as rows:
        return rows.examples(text, label)


CSV = b'\xef\xbb\xbftext,label\r\n"a, ""b""",x\r\n"c\nd",y\r\n\r\ne,x\r\n'
TSV = b"id\tlabel\tinput\n1\tx\ta, b\n"
JSONL = '{"input": "a\u2028b", "label": "x", "n": 1}\n\n{"label": "y", "input": "c"}'.encode()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", CSV, [(2, 'a, "b"', "x"), (3, "c\nd", "y"), (6, "e", "x")]),
        ("a.tsv", TSV, [(2, "a, b", "x")]),
        ("a.jsonl", JSONL, [(1, "a\u2028b", "x"), (3, "c", "y")]),
    ],
)
def test_every_format_reads(tmp_path: Path, name: str, content: bytes, expected: list[Example]) -> None:
    (tmp_path / name).write_bytes(content)
    assert examples(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"text,label\na,x\n", "csv"), (b"text\tlabel\na\tx\n", "tsv"), (b' {"text": "a", "label": "x"}\n', "jsonl")],
)
def test_the_format_of_standard_input_follows_from_its_first_line(
    monkeypatch: pytest.MonkeyPatch, content: bytes, kind: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    with open_rows("-", None) as rows:
        assert rows.format == kind and [(text, label) for _, text, label in rows.examples(None, None)] == [("a", "x")]


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,input,label,intent\na,b,x,y\n")
    with pytest.raises(
        UnreadableRows, match="more than one named 'text' or 'input': name the column of the texts with --text-column"
    ):
        examples(path)
    assert examples(path, text="input", label="intent") == [(2, "b", "y")]
    with pytest.raises(UnreadableRows, match=r"--label-column: no column 'intents'; .* 'text', 'input', 'label', 'intent'"):
        examples(path, text="input", label="intents")
    path.write_text("utterance,category\na,x\n")
    both = "columns 'utterance', 'category': name those of the texts and the labels with --text-column and --label-column"
    with pytest.raises(UnreadableRows, match=both):
        examples(path)
    with pytest.raises(UnreadableRows, match="and none named 'label': name the column of the labels with --label-column"):
        examples(path, text="utterance")
    assert examples(path, text="utterance", label="category") == [(2, "a", "x")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,label\na,x\nb\n", "line 3: expected 2 values as in the header, got 1"),
        ("a.csv", b'text,label\n"a,x\n', "line 2: unexpected end of data"),
        ("a.csv", b"text,label\na,x\n ,y\n", "line 3: expected a text as 'text', got \" \""),
        ("a.csv", b"text,text\na,x\n", "expected a first line of different column names, got text, text"),
        ("a.csv", b"", "expected a first line of different column names, got nothing"),
        ("a.csv", b"text,label\n\xff,x\n", "expected UTF-8 text"),
        ("a.csv", b"text,label\n" + b"a,x\n" * 5000 + b"\xff,x\n", "expected UTF-8 text"),
        ("a.jsonl", b'{"text": "a", "label": "x"}\n[1]\n', "line 2: expected a JSON object"),
        ("a.jsonl", b'{"text": "a", "label": "x"}\n{"text": \n', "line 2: expected a JSON object"),
        ("a.jsonl", b'{"text": "a\\ud800", "label": "x"}\n', "line 1: expected a JSON object of Unicode text"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000, "line 1: expected a JSON object"),
        ("a.jsonl", b'{"text": "a", "label": 3}\n', "line 1: expected a text as 'label', got 3"),
        ("a.jsonl", b"\n\n", "expected at least one row, got none"),
        ("a.txt", b"what,is\tthis\n", "unknown format; choose csv, tsv or jsonl with --format"),
        ("nowhere/a.csv", None, "No such file"),
    ],
)
def test_an_error_names_the_file_and_the_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnreadableRows) as error:
        examples(path)
    assert message in error.value.message and str(path) in error.value.message


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)


@pytest.mark.parametrize("kind", ["csv", "tsv"])
@given(rows=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5))
def test_written_rows_are_read_back(kind: Format, rows: list[tuple[str, str]]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter="\t" if kind == "tsv" else ",", quoting=csv.QUOTE_ALL).writerows([("text", "label"), *rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(buffer.getvalue().encode())))
        with open_rows("-", kind) as found:
            assert [(row["text"], row["label"]) for _, row in found.entries] == rows
