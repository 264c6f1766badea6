"""Tables that are not well formed are refused, with the line and in one short line of text."""

import gzip
import io
import json
import re
import unicodedata
import zlib

import pytest
from quickstudy.tables import Format, TableError, source, table_of


def refused(content: bytes, name: str, kind: Format | None = None) -> str:
    """Read `content`, which must fail with one short line that names the file. Return the line."""
    with pytest.raises(TableError) as error:
        table_of(io.BytesIO(content), name, kind).examples("text", "label")
    message = str(error.value)
    assert name in message and len(message) <= 300
    assert not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in message)
    return message


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        ("a,x\nb\n", 3, "expected 2 values as in the header, got 1"),
        ("a,x\nb, c,y\n", 3, "expected 2 values as in the header, got 3"),
        ("a,x\nb,y,\n", 3, "expected 2 values as in the header, got 3"),
        ('"a\nb",x\n"c",y,z\n', 4, "expected 2 values as in the header, got 3"),
        ('a,x\n"b" c,y\n', 3, "expected a comma after a closing quote, got ' '; write a quote inside a value twice"),
        ('"say "hi" now",x\n', 2, "expected a comma after a closing quote, got 'h'"),
        ('a,x\n"b\nc" ,y\n', 3, "expected a comma after the quote that closes, in line 4, the value that opens here"),
        (
            'a,x\n"b,y\nc,x\n"d,y\n',
            3,
            "expected a comma after the quote that closes, in line 5, the value that opens here, got 'd'",
        ),
        ('a,x\n"b,y\nc,x\nd,y\n', 3, "a quote opens a value here and is not closed"),
        ('"a\nb","x\nc,y\n', 3, "a quote opens a value here and is not closed"),
        ("a,x\n" * 3 + '"b,y\n' + "c,x\n" * 60_000, 5, "a quote opens a value here and is not closed"),
        ("a,x\n" * 3 + '"b,y\n' + f"c,x{' ' * 999}\n" * 2_000, 5, "a quote opens a value here and is not closed"),
        ("a" * 200_000 + ",x\n", 2, "expected values of at most 131,072 characters"),
        ("a,x\n" + "b" * 1_000_001 + ",y\n", 3, "expected a line of at most 1,000,000 characters"),
        ("a,x\nb\0c,y\n", 3, "has a NUL character"),
        ("a,x\n ,y\n", 3, "expected a text as 'text', got white space"),
        ("a,x\n,y\n", 3, "expected a text as 'text', got an empty value"),
        ("a,x\nb,\n", 3, "expected a label as 'label', got an empty value"),
        ("a,x\nb,nan\n", 3, "expected a label as 'label', got 'nan', which stands for a missing value"),
        ("a,x\nb,NaN\n", 3, "which stands for a missing value"),
        ("a,x\nb,#N/A\n", 3, "which stands for a missing value"),
    ],
)
def test_csv_is_strict(content: str, line: int, problem: str) -> None:
    message = refused(f"text,label\n{content}".encode(), "a.csv")
    assert message.startswith(f"a.csv, line {line}: ") and problem in message


@pytest.mark.parametrize(
    "content",
    [
        '"odd start,close\na,open\nb,close\nodd end",close\nc,open\n',
        '"odd start,close\r\na,open\r\nb,close\r\nodd end",close\r\nc,open\r\n',
        '"a;b",open\nc,close\nd,"close\ne,open\nf,close\ng,open"\n',
    ],
)
def test_a_quote_that_swallows_rows_is_refused_where_it_opens(content: str) -> None:
    line = 2 if content.startswith('"odd') else 4
    assert f"a.csv, line {line}: a quote opens here, and its value runs over" in refused(f"text,label\n{content}".encode(), "a.csv")


def test_texts_of_several_lines_are_not_taken_for_rows() -> None:
    letter = '"Dear team,\nplease close it,\nopen, or not\nyours, Kim"'
    content = f"text,label\n{letter},close\nhello,open\n".encode()
    (first, _) = table_of(io.BytesIO(content), "a.csv").examples("text", "label")
    assert first[1].count("\n") == 3


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "expected a first line of column names, got nothing"),
        ("\n\n", "expected a first line of column names, got nothing"),
        ('"",""\na,b\n', "expected a first line of column names, got only blank ones"),
        ("text,label,text\na,x,b\n", "line 1: expected different column names, got 'text' more than once"),
        ("\n\nlabel;text;label\nx;a;y\n", "line 3: expected different column names, got 'label' more than once"),
        ("\x1b]0;owned\x07\x1b[31mtext,\x1b]0;owned\x07\x1b[31mtext\nhi,yo\n", "more than one separator|one separator"),
        ("\x1b[31mtext,\x1b[31mtext\nhi,yo\n", r"got '\\x1b\[31mtext' more than once"),
        ("text,it;label\na,x\n", "line 1: expected one separator in the header, got commas and semicolons"),
    ],
)
def test_a_header_that_is_none_is_refused(content: str, problem: str) -> None:
    assert re.search(problem, refused(content.encode(), "a.csv"))


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        ("a\tx\nb\n", 3, "expected 2 values as in the header, got 1"),
        ("a\tx\nb\tc\ty\n", 3, "expected 2 values as in the header, got 3"),
        ('a\tx\n"b\n', 3, "a quote opens a value here and is not closed"),
        ('a\tx\n"b" c\n', 3, "expected a tab after a closing quote, got ' '"),
        ("a\tx\nb\t<NA>\n", 3, "which stands for a missing value"),
        ("a\tx\n\ty\n", 3, "expected a text as 'text', got an empty value"),
    ],
)
def test_a_line_of_tsv_that_is_no_row_is_refused(content: str, line: int, problem: str) -> None:
    message = refused(f"text\tlabel\n{content}".encode(), "a.tsv")
    assert message.startswith(f"a.tsv, line {line}: ") and problem in message


DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    ("content", "problem", "in_array"),
    [
        (b"[1]", "expected a JSON object with the columns as keys, got a list", None),
        (b'{"text": ', "expected one JSON object in each line, or one array of objects: Expecting value", "not JSON"),
        (
            b'{\n  "text": "a"\n}',
            "expected one JSON object in each line, or one array of objects",
            "expected a label as 'label', got nothing",
        ),
        (b'{"text": "a", "label": "x"} {"text": "b", "label": "x"}', "Extra data", "expected a comma or the end of the array"),
        (b'{"text": "a\\ud83d", "label": "x"}', "got half of a surrogate pair", None),
        (b'{"text": "a", "label": "x", "more": ["\\udc00"]}', "got half of a surrogate pair", None),
        (b'{"text": ' + DEEP, "nested too deeply", None),
        (b'{"text": "a", "label": "x", "n": ' + b"9" * 5_000 + b"}", "a number has too many digits", None),
        (b'{"text": "a", "text": "b", "label": "x"}', "expected each key once, got 'text' again", None),
        (b'{"text": "a", "label": 3}', "got the number 3: write it in quotes if it is a class", None),
        (b'{"text": "a", "label": 2.5}', "got the number 2.5", None),
        (b'{"text": "a", "label": NaN}', "expected a label as 'label', got NaN", None),
        (b'{"text": "a", "label": null}', "expected a label as 'label', got nothing", None),
        (b'{"text": "a", "label": true}', "expected a label as 'label', got true", None),
        (b'{"text": "a", "label": ["x", "y"]}', "got a list: an example has one label", None),
        (b'{"text": "a", "label": {"x": 1}}', "expected a label as 'label', got an object", None),
        (b'{"text": "a", "label": "nan"}', "which stands for a missing value", None),
        (b'{"text": 7, "label": "x"}', "expected a text as 'text', got 7", None),
        (b'{"text": null, "label": "x"}', "expected a text as 'text', got nothing", None),
        (b'{"text": "a"}', "expected a label as 'label', got nothing", None),
    ],
)
@pytest.mark.parametrize("array", [False, True])
def test_json_names_the_line(content: bytes, problem: str, in_array: str | None, array: bool) -> None:
    good = b'{"text": "fine", "label": "x"}'
    if array:
        message = refused(b"[" + good + b",\n" + content + b"\n]", "a.json")
    else:
        message = refused(good + b"\n" + content + b"\n", "a.json")
    place = r"a\.json, line [23] \(row 2\): " if array and "comma" not in (in_array or "") else r"a\.json, line [23]: "
    assert re.match(place, message) and ((array and in_array) or problem) in message


def test_an_array_in_one_line_names_the_row() -> None:
    rows = [{"text": f"a {number}", "label": "x"} for number in range(3_000)]
    for wrong, problem in (
        ({"text": "b", "label": None}, "got nothing"),
        ({"text": "\u200b", "label": "x"}, "invisible"),
        (7, "got 7"),
    ):
        message = refused(json.dumps([*rows, wrong, *rows]).encode(), "a.json")
        assert message.startswith("a.json, line 1 (row 3001): ") and problem in message


@pytest.mark.parametrize("orient", ["split", "index"])
def test_other_orients_of_pandas_are_refused_with_the_remedy(orient: str) -> None:
    pandas = pytest.importorskip("pandas")
    content = pandas.DataFrame({"text": ["a", "b"], "label": ["x", "y"]}).to_json(orient=orient).encode()
    assert refused(content, "a.json").endswith("write one object for each row, in pandas with orient='records'")


def test_columns_of_pandas_are_refused_with_the_remedy() -> None:
    content = json.dumps({"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}}).encode()
    assert refused(content, "a.json").endswith("got an object: write one object for each row, in pandas with orient='records'")


@pytest.mark.parametrize("blank", ["\u200b", "\ufeff\u2060", "\u00ad \u200d"])
def test_invisible_characters_are_neither_text_nor_label(blank: str) -> None:
    assert "line 2: expected a text as 'text', got invisible characters" in refused(f"text,label\n{blank},x\n".encode(), "a.csv")
    assert "line 2: expected a label as 'label', got invisible characters" in refused(f"text,label\na,{blank}\n".encode(), "a.csv")
    table = table_of(io.BytesIO(f"text,label\na{blank},{blank}x\n".encode()), "a.csv")
    assert table.examples("text", "label") == [(2, f"a{blank}", f"{blank}x")]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "expected at least one row, got none"),
        (b"\n \n", "expected at least one row, got none"),
        (b"[]", "expected at least one row, got none"),
        (b"[", "line 1 (row 1): not JSON: Expecting value"),
        (
            b'[{"text": "a", "label": "x"}',
            "line 1: expected a comma or the end of the array after an object, got the end of the file",
        ),
        (b'[{"text": "a", "label": "x"},\n]', "line 2 (row 2): not JSON: Expecting value"),
        (b'[{"text": "a", "label": "x"}]\n\nmore', "line 3: expected nothing after the array, got 'm'"),
        (b'[{"text": "a", "label": "x"}\n{"text"', "line 2: expected a comma or the end of the array after an object, got '{'"),
        (b'[{"text": "' + b"a" * 1_100_000 + b'", "label": "x"}]', "expected a JSON object of at most 1,000,000 characters"),
        (b'[{"text": "a' + b" " * 1_200_000, "expected a JSON object of at most 1,000,000 characters"),
    ],
)
def test_an_array_that_is_not_whole_is_refused(content: bytes, problem: str) -> None:
    assert problem in refused(content, "a.json")


CAFE = "café crème, où ça?,été\n"


@pytest.mark.parametrize(
    ("encoding", "text", "hint"),
    [
        ("windows-1252", CAFE, "WINDOWS-1252"),
        ("windows-1252", "“Grüße” – 5 €,straße\n", "WINDOWS-1252"),
        ("latin-1", "el niño comió,sí\n", "WINDOWS-1252"),
        ("windows-1251", "закройте мой счёт,закрыть\n", "WINDOWS-1251"),
        ("shift-jis", "口座を閉じてください,閉じる\n", "SHIFT-JIS"),
        ("gb18030", "请帮我关闭这个账户,关闭\n", "GB18030"),
        ("euc-kr", "계좌를 닫아 주세요,닫기\n", "EUC-KR"),
        ("big5", "請幫我關閉這個帳戶,關閉\n", "BIG5"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
def test_another_encoding_is_refused_with_a_hint_and_the_line(encoding: str, text: str, hint: str, name: str) -> None:
    text = text.replace("crème, où", "crème où")
    if name == "a.csv":
        content = f"text,label\nfine,x\n{text}".encode(encoding)
    else:
        one, two = (json.dumps({"text": value, "label": "x"}, ensure_ascii=False) for value in ("fine", text.strip()))
        content = (f"\n{one}\n{two}\n" if name == "a.jsonl" else f"[\n{one},\n{two}]").encode(encoding)
    message = refused(content, name)
    assert "line 3: expected UTF-8, got the byte 0x" in message
    assert f"reads right, convert it with iconv -f {hint} -t UTF-8" in message
    shown = re.search("if ['\"](.*)['\"] reads right", message)
    assert shown is not None and next(letter for letter in text if not letter.isascii()) in shown[1]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("mac-roman", CAFE),
        ("mac-roman", "say “hi”,it’s lost\n"),
        ("cp850", CAFE),
        ("cp437", "Ich möchte schließen,schließen\n"),
        ("tis-620", "กรุณาปิดบัญชีของฉัน,ปิด\n"),
        ("koi8-r", "закройте мой счёт,закрыть\n"),
        ("windows-1250", "Zgubiłem kartę płatniczą,zgubiona\n"),
        ("windows-1253", "Έχασα την κάρτα μου,απώλεια\n"),
        ("windows-1254", "Kartımı kaybettim,kayıp\n"),
        ("windows-1255", "איבדתי את הכרטיס שלי,אובדן\n"),
        ("windows-1256", "فقدت بطاقتي,فقدان\n"),
    ],
)
def test_an_encoding_that_is_not_sure_gets_no_hint(encoding: str, text: str) -> None:
    message = refused(f"text,label\nfine,x\n{text}".encode(encoding), "a.csv")
    assert re.search(
        r"line 3: expected UTF-8, got the byte 0x[89A-F][0-9A-F] (after .*|at the beginning of the line): convert", message
    )
    assert "iconv" not in message


def test_chinese_is_not_taken_for_korean_nor_japanese_for_chinese() -> None:
    chinese = "把卡报失,把卡\n办卡费高,半价\n这个账户我不要了,关闭\n"
    assert "iconv -f GB18030" in refused(f"text,label\n{chinese}".encode("gb18030"), "a.csv")
    assert "iconv -f EUC-JP" in refused("text,label\n口座を閉じてください,閉じる\n".encode("euc-jp"), "a.csv")


@pytest.mark.parametrize("text", ["Grüße aus Köln", "口座を閉じて,ください", "закройте мой счёт"])
def test_utf8_with_one_wrong_byte_is_named_as_such(text: str) -> None:
    content = f"label;text\nx;{text}\ny;caf".encode() + b"\xe9\n"
    expected = "a.csv, line 3: expected UTF-8, got the byte 0xE9 after 'y;caf'; the file is otherwise UTF-8"
    assert refused(content, "a.csv") == expected


def test_the_beginning_of_a_long_file_is_evidence_for_its_end() -> None:
    content = ("text,label\n" + "grün,a\n" * 30_000).encode() + b"caf\xe9,b\n"
    assert "line 30002: expected UTF-8, got the byte 0xE9 after 'caf'; the file is otherwise UTF-8" in refused(content, "a.csv")


def packed(content: bytes) -> bytes:
    """Compress without the time, so that each process names the tests alike."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("text,label\na,x\n".encode("utf-16-le"), "looks like UTF-16 without a byte-order mark"),
        ("text,label\na,x\n".encode("utf-16-be"), "looks like UTF-16 without a byte-order mark"),
        ("text,label\na,x\n".encode("utf-32"), "is UTF-32: convert it to UTF-8"),
        ("text,label\nab,x\n".encode("utf-16")[:-1], "expected valid UTF-16"),
        (b"\xff\xfetext,label\na,x\n", "expected valid UTF-16|first line of column names|no column|looks like|expected"),
        (b"PK\x03\x04" + bytes(40), "a zip archive or an Excel workbook: save the sheet as CSV"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel or Word file"),
        (b"PAR1" + bytes(40), "a Parquet file"),
        (packed(packed(b"text,label\na,x\n")), "is compressed twice"),
        (packed(b"text,label\n" + b"a,x\n" * 60_000)[:-9], "the gzip file is damaged or incomplete"),
        (packed(b"text,label\na,x\n")[:12], "the gzip file is damaged or incomplete"),
        (packed(b"text,label\na,x\n")[:-8] + bytes(8), "the gzip file is damaged or incomplete"),  # another checksum
        (b"\x1f\x8b", "the gzip file is damaged or incomplete"),
    ],
)
def test_a_file_of_another_kind_is_named(content: bytes, problem: str) -> None:
    assert re.search(problem, refused(content, "a.csv"))


def test_a_gzip_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_UNPACKED_BYTES", 3_000_000)
    packed = gzip.compress(b"text,label\n" + b"a,x\n" * 800_000)
    assert "unpacks to more than 3,000,000 bytes: unpack it first" in refused(packed, "a.csv.gz")
    one_line = zlib.compressobj(wbits=31)
    assert "expected a line of at most" in refused(one_line.compress(b"a" * 2_500_000) + one_line.flush(), "a.csv.gz")


@pytest.mark.parametrize("name", ["x" * 4_000 + ".csv", "\x1b[31mred\x07.csv", "line\nbreak.csv"])
def test_a_name_cannot_make_the_message_long_or_dangerous(name: str) -> None:
    with pytest.raises(TableError) as error:
        list(table_of(io.BytesIO(b"text,label\na\n"), name).entries)
    assert len(str(error.value)) <= 300 and str(error.value).isprintable() and "got 1" in str(error.value)
