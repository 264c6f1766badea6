"""Tables that could be read in two ways, and the time that made-up ones take."""

import codecs
import io
import json
import time

import pytest
from quickstudy.tables import TableError, table_of

from metatrain.tasks.normal_form import normal_form

Example = tuple[int, str, str]
PAIRS = [("shut it", "close"), ("how much?", "ask")]
SECONDS = 3.0
"""A bound with room: what it tests took 8 to 49 seconds, and takes less than 0.3 seconds."""


def read(content: str | bytes, name: str = "a.csv") -> list[Example]:
    raw = content.encode() if isinstance(content, str) else content
    return table_of(io.BytesIO(raw), name).examples("text", "label")


def refused(content: str | bytes, name: str = "a.csv") -> str:
    with pytest.raises(TableError) as error:
        read(content, name)
    return str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("marks", [2, 3, 1000])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a"])
def test_further_byte_order_marks_are_left_out(encoding: str, marks: int, name: str) -> None:
    lines = {
        "a.jsonl": [json.dumps({"text": text, "label": label}) for text, label in PAIRS],
        "a.tsv": ["text\tlabel", *("\t".join(pair) for pair in PAIRS)],
    }.get(name, ["text,label", *(",".join(pair) for pair in PAIRS)])
    content = ("\ufeff" * marks + "\n".join(lines)).encode(encoding)
    assert [example[1:] for example in read(content, name)] == PAIRS


@pytest.mark.parametrize(
    "content", [codecs.BOM_UTF8 * 2, codecs.BOM_UTF16_LE * 2, codecs.BOM_UTF16_BE * 3, codecs.BOM_UTF8 * 9_000]
)
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a", "a.jsonl", "a.json"])
def test_a_file_of_byte_order_marks_alone_is_refused(content: bytes, name: str) -> None:
    assert "expected " in refused(content, name)


KEYS = [f"k{number}" for number in range(60_000)]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json"])
def test_the_search_for_a_repeated_name_takes_linear_time(name: str) -> None:
    keys = [*KEYS, KEYS[-1]]
    if name.startswith("a.json"):
        content = "{" + ",".join(f'"{key}":1' for key in keys) + "}"
        content = f"[{content}]" if name == "a.json" else content
    else:
        content = ("," if name == "a.csv" else "\t").join(keys) + "\n"
    start = time.process_time()
    assert f"got '{KEYS[-1]}'" in refused(content, name)
    assert time.process_time() - start < SECONDS


@pytest.mark.parametrize("marks", ["\u0301\u0327", "\u0f81\u0f71", "\uff9e\u0301\u0327"])
def test_the_normal_form_of_endless_marks_takes_linear_time(marks: str) -> None:
    start = time.process_time()
    assert normal_form("a" + marks * 50_000)
    assert time.process_time() - start < SECONDS


def test_marks_of_real_words_are_sorted_as_before() -> None:
    assert normal_form("a\u0301\u0327" * 100) == normal_form("a\u0327\u0301" * 100)
    assert normal_form("a" + "\u0301" * 14 + "\u0327" * 14) == normal_form("a" + "\u0327" * 14 + "\u0301" * 14)
    assert normal_form("a" + "\u0301" * 100) != normal_form("a" + "\u0301" * 99)


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t")])
def test_quoted_rows_without_any_value_are_left_out(name: str, separator: str) -> None:
    rows = [("text", "label"), ("shut it", "close"), ("", ""), ("how much?", "ask"), ("", ""), (" ", "")]
    content = "".join(separator.join(f'"{value}"' for value in row) + "\n" for row in rows)
    assert [(line, text) for line, text, _ in read(content, name)] == [(2, "shut it"), (4, "how much?")]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_quoted_blank_of_a_single_column_is_a_row(name: str) -> None:
    """Predictions are written row by row, so a text that is missing must not shift the rows after it."""
    table = table_of(io.BytesIO(b'text\nshut it\n""\n" "\n\nhow much?\n'), name)
    assert [(line, row["text"]) for line, row in table.entries] == [(2, "shut it"), (3, ""), (4, " "), (6, "how much?")]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a", "a.txt"])
@pytest.mark.parametrize(
    ("first", "separator"),
    [("sep=\t", "\t"), ("sep=\\t", "\t"), ('"sep=\t"', "\t"), ('"sep=;"', ";"), ("Sep=;", ";"), ('"sep=|"', "|"), ("sep=,", ",")],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_stated_separator_is_no_header(name: str, first: str, separator: str, end: str) -> None:
    content = end.join([first, f"text{separator}label", *(separator.join(pair) for pair in PAIRS), ""])
    assert read(content, name) == [(3, *PAIRS[0]), (4, *PAIRS[1])]


@pytest.mark.parametrize(
    ("header", "content", "line"),
    [
        ("text\tlabel", 'shut\tclose\n"Name\tPrice\nTea"\ttable\nhello\tgreet\n', 3),
        ("text\tlabel", '"Name\tPrice\nTea\t5\nMilk\t7\nend"\ttable\nhello\ttable\n', 2),
        ("label\ttext", 'greet\thello\ntable\t"Tea\n5\t7 and ""more""\nend\t8"\ntable\tx\n', 3),
    ],
)
def test_a_quoted_text_of_tsv_that_would_be_torn_is_refused_where_it_opens(header: str, content: str, line: int) -> None:
    message = refused(f"{header}\n{content}", "a.tsv")
    assert message.startswith(f"a.tsv, line {line}: a quote opens a value here") and len(message) <= 300


@pytest.mark.parametrize(
    "content",
    [
        'shut\tclose\n"odd start\topen\nopen it\topen\nb\tclose\nodd end"\tclose\n',
        'a 5" pipe\tx\n"so they say\ty\na 12"\tz\nmore\ty\n',
        '"one\tx\n"two\ty\n"three\tz\n',
        'one"\tx\ntwo"\ty\n"three\tz\n',
        '"one\tx\ntwo"\tx\n',
    ],
)
def test_lone_quotes_of_tsv_are_characters(content: str) -> None:
    rows = [tuple(line.split("\t")) for line in content.splitlines()]
    assert [example[1:] for example in read(f"text\tlabel\n{content}", "a.tsv")] == rows


@pytest.mark.parametrize(
    ("header", "content"),
    [
        ("text,stars", '"Nice, 5\nService, 4\nRooms, 3\nbye",5\nbad,4\nmeh,3\n'),
        ("text,stars", '"We were here\nFood,5\nService,4\nbye",5\nbad,4\n'),
        ("label,text", 'yes,"Dear all\nyes, of course\nno, thanks\nbye"\nno,"Hi\nno, never\nyes, maybe\n\nbye"\n'),
        ("id,text,stars", '1,"Food,5\nService,4\nRooms,3\nbye",5\n2,bad,4\n3,meh,3\n'),
        ("text,label,src", '"Please\nclose,it\nopen,close\nbye",open,web\nx,close,app\n'),
    ],
)
def test_texts_with_lines_that_resemble_rows_are_read(header: str, content: str) -> None:
    table = table_of(io.BytesIO(f"{header}\n{content}".encode()), "a.csv")
    examples = table.examples("text", "stars" if "stars" in header else "label")
    assert "bye" in examples[0][1]


@pytest.mark.parametrize(
    ("header", "content", "line"),
    [
        ("text,label,src", 'c,open,web\n"odd,close,web\na,open,app\nb,close,web\nodd end",close,web\n', 3),
        ("id;label;text", '1;open;c\n2;close;"odd\n3;open;a\n4;close;b\n5;open;end"\n', 3),
        ("label,text", 'open,c\nclose,"odd\nopen,a\nclose,b\nopen,end"\n', 3),
        ("text,label,note", 'c,open,n\nd,close,"n1\na,open,n2\nb,close,n3\ne,open,n4"\n', 3),
        ("note,text,label", 'n,c,open\n"odd,d,close\nn2,a,open\nn3,b,close\nend",e,open\nn4,f,close\n', 3),
    ],
)
def test_swallowed_rows_are_found_wherever_the_label_is(header: str, content: str, line: int) -> None:
    assert f"a.csv, line {line}: a quote opens here, and its value runs over" in refused(f"{header}\n{content}")
