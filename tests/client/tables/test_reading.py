"""Tables as people have them are read as they meant them."""

import codecs
import gzip
import io
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from quickstudy.tables import Format, TableError, open_table, table_of

Example = tuple[int, str, str]
PAIRS = [(2, "shut it", "close"), (3, "how much?", "ask")]


def read(content: bytes, name: str = "a.csv", kind: Format | None = None) -> list[Example]:
    return table_of(io.BytesIO(content), name, kind).examples("text", "label")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "a.csv",
            b'\xef\xbb\xbftext,label\r\n"a, ""b""",x\r\n"c\nd",y\r\n\r\ne,x\r\n',
            [(2, 'a, "b"', "x"), (3, "c\nd", "y"), (6, "e", "x")],
        ),
        ("a.tsv", b"id\tlabel\ttext\n1\tx\ta, b\n", [(2, "a, b", "x")]),
        (
            "a.jsonl",
            '{"text": "a\u2028b", "label": "x", "n": 1}\n\n{"label": "y", "text": "c"}'.encode(),
            [(1, "a\u2028b", "x"), (3, "c", "y")],
        ),
        (
            "a.json",
            b'[\n {"text": "a", "label": "x"},\n {"text": "b, [c]",\n  "label": "y"} ]\n',
            [(2, "a", "x"), (3, "b, [c]", "y")],
        ),
        ("a.json", b'{"text": "a", "label": "x"}\n', [(1, "a", "x")]),
        ("a.jsonl", b'[{"text": "a", "label": "x"}]', [(1, "a", "x")]),
        ("a.txt", b"text\tlabel\na, b\tx\n", [(2, "a, b", "x")]),
        ("a", b"text,label\na,x\n", [(2, "a", "x")]),
    ],
)
def test_every_format_reads(name: str, content: bytes, expected: list[Example]) -> None:
    assert read(content, name) == expected


@pytest.mark.parametrize("mark", [codecs.BOM_UTF8, b""])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("name", ["a.CSV", "a.tsv", "a.JSONL", "a.Json", "a.ndjson"])
def test_marks_line_ends_packing_and_case_of_the_suffix_make_no_difference(mark: bytes, end: str, pack: type, name: str) -> None:
    lines = {"csv": [f"{text},{label}" for _, text, label in PAIRS], "tsv": [f"{text}\t{label}" for _, text, label in PAIRS]}
    kind = name.partition(".")[2].lower()
    objects = [json.dumps({"text": text, "label": label}) for _, text, label in PAIRS]
    if kind == "json":
        content = end.join(["[", *(",".join(objects).replace("},", "},\n").split("\n")), "]"])
    elif kind in lines:
        content = end.join([{"csv": "text,label", "tsv": "text\tlabel"}[kind], *lines[kind], ""])
    else:
        content = end.join(["", *objects])
    assert read(pack(mark + content.encode()), f"{name}.gz" if pack is gzip.compress else name) == PAIRS


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json"])
def test_utf_16_with_its_mark_is_read(encoding: str, name: str) -> None:
    content = {
        "csv": "text,label\nनमस्ते 👋,hi\n",
        "tsv": 'text\tlabel\n"नमस्ते 👋\thi\n',
        "jsonl": '{"text": "नमस्ते 👋", "label": "hi"}\n',
        "json": '[{"text": "नमस्ते 👋", "label": "hi"}]',
    }[name.partition(".")[2]]
    mark = "" if encoding == "utf-16" else "\ufeff"
    (example,) = read((mark + content).encode(encoding), name)
    assert example[1].removeprefix('"') == "नमस्ते 👋" and example[2] == "hi"


@pytest.mark.parametrize(
    "content",
    [
        "text;label\nyes, shut it;close\nhow much?;ask\n",
        "text\tlabel\nyes, shut it\tclose\nhow much?\task\n",
        "sep=;\ntext;label\nyes, shut it;close\nhow much?;ask\n",
        "SEP=|\r\ntext|label\r\nyes, shut it|close\r\nhow much?|ask\r\n",
        '"text";"label"\n"yes, shut it";close\nhow much?;"ask"\n',
        "note, if any;text;label\n;yes, shut it;close\n,;how much?;ask\n",
        ";text;label;;\n0;yes, shut it;close;;\n1;how much?;ask;;\n;;;;\n",
    ],
)
def test_the_separator_of_a_csv_file_follows_from_its_header(content: str) -> None:
    assert [example[1:] for example in read(content.encode())] == [("yes, shut it", "close"), ("how much?", "ask")]


@pytest.mark.parametrize(
    "content",
    [
        ",text,label\n0,shut it,close\n1,how much?,ask\n",
        "text,label,,\nshut it,close,,\nhow much?,ask,,\n",
        "text,,label\nshut it,7,close\nhow much?,,ask\n",
        '" ",text,label," "\n0,shut it,close,\n1,how much?,ask,x\n',
        "text,label\nshut it,close\nhow much?,ask\n,\n,\n",
    ],
)
def test_nameless_columns_and_rows_of_separators_are_left_out(content: str) -> None:
    table = table_of(io.BytesIO(content.encode()), "a.csv")
    assert table.columns == ("text", "label") and table.examples("text", "label") == PAIRS


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('shut it\tx\n"odd start\tx\nhow?\ty\nodd end"\tx\nbye\ty\n', ["shut it", '"odd start', "how?", 'odd end"', "bye"]),
        ('5" pipe\tx\n12" "nails"\ty\n', ['5" pipe', '12" "nails"']),
        ('"so ""said"" he"\tx\n"a\tb"\ty\n', ['so "said" he', "a\tb"]),
        ('"one\ntwo\nthree"\tx\nfour\ty\n', ["one\ntwo\nthree", "four"]),
        ('"\tx\n""\ty\n""" alone"\tx\n'.replace('""\ty', '"" is\ty'), ['"', '"" is', '" alone']),
    ],
)
def test_a_quote_in_tsv_is_a_character_unless_it_encloses_a_value(content: str, expected: list[str]) -> None:
    assert [text for _, text, _ in read(f"text\tlabel\n{content}".encode(), "a.tsv")] == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('x\t"one\ntwo"\ny\tthree\n', [(2, "one\ntwo", "x"), (4, "three", "y")]),
        ('x\t"one\ny\ttwo\n', [(2, '"one', "x"), (3, "two", "y")]),
        ('x\tone\ny\t"two\n', [(2, "one", "x"), (3, '"two', "y")]),
        ('x\t"one\n\ny\ttwo\n', [(2, '"one', "x"), (4, "two", "y")]),
    ],
)
def test_a_last_value_of_tsv_goes_on_if_the_next_line_is_no_row(content: str, expected: list[Example]) -> None:
    assert read(f"label\ttext\n{content}".encode(), "a.tsv") == expected


def test_a_tsv_file_whose_header_is_quoted_is_quoted_throughout() -> None:
    content = b'"text"\t"label"\n"a\tb\nc\td"\t"x"\n"say ""hi"""\t"y"\n'
    assert read(content, "a.tsv") == [(2, "a\tb\nc\td", "x"), (4, 'say "hi"', "y")]


def big_csv(rows: int) -> Iterator[bytes]:
    yield b"text,label\n"
    for number in range(rows):
        yield f'"example, number {number}",label {number % 7}\n'.encode()


def big_json(rows: int) -> Iterator[bytes]:
    yield b"["
    for number in range(rows):
        yield b", " * bool(number) + json.dumps({"text": f"number {number}", "label": "x", "more": [1, {"a": "]"}]}).encode()
    yield b"]"


@pytest.mark.parametrize(("name", "parts"), [("a.csv", big_csv), ("a.json", big_json)])
@pytest.mark.parametrize("packed", [False, True])
def test_a_large_file_is_read_row_by_row(tmp_path: Path, name: str, parts: type, packed: bool) -> None:
    path = tmp_path / name
    with gzip.open(path, "wb", 1) if packed else path.open("wb") as file:
        for part in parts(20_000):
            file.write(part)
    tracemalloc.start()
    try:
        with open_table(path) as table:
            assert sum(1 for _ in table.entries) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_pipe_may_deliver_few_bytes_at_a_time() -> None:
    class Slow:
        def __init__(self, content: bytes) -> None:
            self.stream = io.BytesIO(content)

        def read(self, size: int) -> bytes:
            return self.stream.read(min(size, 1))

    content = gzip.compress(b"text,label\nshut it,close\nhow much?,ask\n")
    assert table_of(Slow(content), "standard input").examples("text", "label") == PAIRS


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none.csv", "No such file"), (tmp_path, "Is a directory"), (Path("a\0.csv"), "null")):
        with pytest.raises(TableError, match=message), open_table(path):
            pass
