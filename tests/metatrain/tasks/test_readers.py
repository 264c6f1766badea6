"""Every data reader on real files, and its errors for broken files."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metatrain.errors import DataError
from metatrain.tasks.arrays import Arrays, ArraySampler, from_arrays, read_images, read_npz
from metatrain.tasks.episodes import EpisodeShape
from metatrain.tasks.hub import read_hub
from metatrain.tasks.table import read_table
from metatrain.training.recipe import Source


def test_tables_and_json_lines_give_the_same_examples(tmp_path: Path) -> None:
    rows = [("billing", "why, oh why, was I charged twice?"), ("billing", "a\nsecond line"), ("refund", "Grüße")]
    lines = [f'{label},"{text}"' for label, text in rows]
    (tmp_path / "intents.csv").write_text("label,text\n" + "\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "tabbed.tsv.gz").write_bytes(gzip.compress(("kind\tsaid\n" + "\n".join(f'{a}\t"{b}"' for a, b in rows)).encode()))
    (tmp_path / "same.jsonl").write_text("\n".join(json.dumps({"label": a, "text": b}) for a, b in rows))
    expected = Source(path="same.jsonl").read(tmp_path).texts
    assert Source(path="intents.csv").read(tmp_path).texts == expected
    tabbed = Source.model_validate({"path": "tabbed.tsv.gz", "columns": {"text": "said", "label": "kind"}})
    assert tabbed.read(tmp_path).texts == expected
    assert tabbed.read(tmp_path).name == "tabbed"


def test_a_broken_table_gives_an_error_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("text,topic\na,b\n")
    with pytest.raises(DataError, match=r"x\.csv: no column 'label'; the columns are 'text', 'topic'"):
        read_table(path)
    path.write_text("text,label\na,b\n ,c\n")
    with pytest.raises(DataError, match=r"x\.csv:3: expected a text as 'text', got white space"):
        read_table(path)
    path.write_text("text,label\n")
    with pytest.raises(DataError, match="no examples"):
        read_table(path)
    path.write_bytes(b"text,label\n\xff\xfe,a\n")
    with pytest.raises(DataError, match=r"x\.csv:2: expected UTF-8"):
        read_table(path)
    with pytest.raises(DataError, match="no file at"):
        read_table(tmp_path / "none.csv")


ROWS = [(f"{verb} my {kind} account", label) for verb, label in (("shut", "close"), ("start", "open")) for kind in "abcd"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", "\ufeff" + "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS)),
        ("a.JSONL", "\n".join(json.dumps({"label": label, "n": 1, "text": text}) for text, label in ROWS)),
        ("a.json", json.dumps([{"text": text, "label": label} for text, label in ROWS], indent=1)),
        ("a.csv", ",text,label\n" + "".join(f"{n},{text},{label}\n" for n, (text, label) in enumerate(ROWS))),
        ("a.csv", "sep=;\ntext;label;;\n" + "".join(f"{text};{label};;\n" for text, label in ROWS)),
        ("a.CSV", "label\ttext\r\n" + "".join(f"{label}\t{text}\r\n" for text, label in ROWS)),
        ("a.tsv", "\ufefftext\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS)),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_source_is_read_as_people_have_it(tmp_path: Path, name: str, content: str, encoding: str) -> None:
    (tmp_path / name).write_bytes(content.removeprefix("\ufeff").encode(encoding) if encoding == "utf-16" else content.encode())
    expected = {label: tuple(text for text, other in ROWS if other == label) for label in ("close", "open")}
    assert Source(path=name).read(tmp_path).texts == expected
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    assert Source(path=f"{name}.gz").read(tmp_path).texts == expected


def test_columns_are_chosen_in_json_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"said": "hi", "kind": "greet"}\n')
    source = Source.model_validate({"path": "a.jsonl", "columns": {"text": "said", "label": "kind"}})
    assert source.read(tmp_path).texts == {"greet": ("hi",)}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("label_first.csv", "label,text\nclose,my account, please shut it\n", ":2: expected 2 values as in the header, got 3"),
        (
            "text_first.csv",
            "text,label\nhi,greet\nhi there, my card is gone,lost\n",
            ":3: expected 2 values as in the header, got 3",
        ),
        ("short.csv", "text,label\nhi,greet\nbye\n", ":3: expected 2 values as in the header, got 1"),
        ("open.csv", 'text,label\n"odd start,close\na,open\nb,close\nodd end",close\nc,open\n', ":2: a quote opens here"),
        ("nan.csv", "text,label\nhi,nan\n", ":2: expected a label as 'label', got 'nan'"),
        ("list.jsonl", '{"text": "hi", "label": ["a", "b"]}\n', ":1: expected a label as 'label', got a list"),
        ("latin.csv", b"text,label\ncaf\xe9,x\n", ":2: expected UTF-8, got the byte 0xE9; if 'café,x' reads right"),
        ("nul.tsv", "text\tlabel\na\0b\tx\n", ":2: has a NUL character"),
    ],
)
def test_a_row_that_is_not_what_it_seems_is_refused(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=f"{name}{message}") as error:
        Source(path=name).read(tmp_path)
    assert len(str(error.value)) <= 300


def test_a_label_that_looks_like_several_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text("text,label\nhi,a\nho,b\nhi ho,a;b\n")
    assert len(Source(path="a.csv").read(tmp_path).texts) == 3
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'a.csv'}:4: the label 'a;b' looks like several labels; an example has one label"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON: Expecting property name"),
        ("[" * 100_000, "not JSON: RecursionError"),
        ('{"1": {"train": "a"}}', "expected a list of labels, got 'a'"),
        ('{"1": {"train": [["a"]]}}', "expected a list of labels, got a list with other values"),
        ('{"1": ["a"]}', "no split '1' with part 'train'"),
        ("[]", "no split '1' with part 'train'"),
        ("\udcff", "not JSON"),
    ],
)
def test_a_broken_split_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "splits.json").write_bytes(content.encode(errors="surrogateescape"))
    (tmp_path / "a.csv").write_text("text,label\nhi,a\n")
    source = Source.model_validate({"path": "a.csv", "split": {"file": "splits.json", "id": "1", "part": "train"}})
    with pytest.raises(DataError, match=f"splits.json: .*{message}"):
        source.read(tmp_path)


def test_a_data_set_in_the_format_of_the_hub_is_read_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    labels = datasets.ClassLabel(names=["refund", "billing"])
    features = datasets.Features({"utterance": datasets.Value("string"), "intent": labels})
    folder = tmp_path / "intents"
    datasets.Dataset.from_dict({"utterance": ["a", "b"], "intent": [1, 0]}, features=features).to_parquet(folder / "train.parquet")
    found = read_hub(str(folder), text="utterance", label="intent")
    assert set(found.texts.values()) == {("a",), ("b",)} and found.name == "intents"
    with pytest.raises(DataError, match=r"no column 'text', has utterance, intent"):
        read_hub(str(folder), label="intent")
    with pytest.raises(DataError, match=r"hub:.*split 'test'"):
        read_hub(str(folder), split="test", text="utterance", label="intent")
    plain = tmp_path / "plain"
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["refund", None]}).to_parquet(plain / "train.parquet")
    with pytest.raises(DataError, match="label is missing for 1 examples"):
        read_hub(str(plain))
    for number, (values, problem) in enumerate(
        [
            ([["a"], ["a", "b"]], "row 0: expected a label as 'label', got a list"),
            (["a", "nan"], "row 1: expected a label as 'label', got 'nan', which stands for a missing value"),
            ([0.5, 1.5], "row 0: expected a label as 'label', got the number 0.5"),
            (["a", " "], "row 1: expected a label as 'label', got white space"),
        ]
    ):
        datasets.Dataset.from_dict({"text": ["a", "b"], "label": values}).to_parquet(tmp_path / str(number) / "train.parquet")
        with pytest.raises(DataError, match=problem):
            read_hub(str(tmp_path / str(number)))
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [7, 8]}).to_parquet(tmp_path / "numbers" / "train.parquet")
    assert read_hub(str(tmp_path / "numbers")).texts == {"7": ("a",), "8": ("b",)}


def test_arrays_from_memory_files_and_images(tmp_path: Path) -> None:
    examples, labels = np.arange(24, dtype=np.uint8).reshape(6, 2, 2), np.array([0, 0, 1, 1, 2, 2])
    arrays = from_arrays("small", examples, labels)
    assert [len(rows) for rows in arrays.classes.values()] == [2, 2, 2]
    np.savez(tmp_path / "a.npz", images=examples, labels=labels)
    again = read_npz(tmp_path / "a.npz")
    assert all(np.array_equal(again.classes[label], rows) for label, rows in arrays.classes.items())
    with pytest.raises(DataError, match=r"no array 'pictures', has images, labels"):
        read_npz(tmp_path / "a.npz", examples="pictures")
    np.savez(tmp_path / "p.npz", images=np.array([{}], dtype=object), labels=labels)
    with pytest.raises(DataError, match=r"not an \.npz file of plain arrays"):
        read_npz(tmp_path / "p.npz")
    with pytest.raises(DataError, match="as many examples as labels"):
        from_arrays("x", examples, labels[:3])
    (tmp_path / "pictures" / "red").mkdir(parents=True)
    Image.new("RGB", (30, 20), (255, 0, 0)).save(tmp_path / "pictures" / "red" / "1.png")
    (pictures,) = read_images(tmp_path / "pictures", 8).classes.values()
    assert pictures.shape == (1, 3, 8, 8) and (pictures[0, 0] == 255).all() and not pictures[0, 1].any()
    (tmp_path / "pictures" / "red" / "2.png").write_text("no image")
    with pytest.raises(DataError, match=r"2\.png: not an image"):
        read_images(tmp_path / "pictures", 8)


def test_array_tasks_are_seeded_disjoint_and_rotated() -> None:
    generator = np.random.default_rng(0)
    arrays = Arrays("noise", {str(c): generator.random((6, 3, 3)) for c in range(4)})
    sampler, shape = ArraySampler(arrays, seed=1, rotations=True), EpisodeShape(5, 2, 3)
    support, query = sampler.tasks(7, shape, 3)
    assert support.x.shape == (3, 10, 3, 3) and query.x.shape == (3, 15, 3, 3)
    assert support.y[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    again = sampler.tasks(7, shape, 3)[0]
    assert torch.equal(support.x, again.x) and not torch.equal(support.x, sampler.tasks(8, shape, 3)[0].x)
    images = [row for rows in arrays.classes.values() for row in rows]
    rotated = {np.rot90(image, turn).astype(np.float32).tobytes() for image in images for turn in range(4)}
    for task in range(3):
        drawn = [image.numpy().tobytes() for image in (*support.x[task], *query.x[task])]
        assert set(drawn) <= rotated and len(set(drawn)) == len(drawn)
    with pytest.raises(DataError, match="needs 17 classes of 5 examples; it has 16, the smallest of 6"):
        sampler.tasks(0, EpisodeShape(17, 2, 3), 1)


@pytest.mark.parametrize("name", ["\x1b[31mred\x07.csv", "very long " * 20 + ".csv"])
def test_a_warning_about_labels_is_one_short_line(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    (tmp_path / name).write_text("text,label\na,x\nb,y\nc,x;y\n")
    with caplog.at_level("WARNING"):
        read_table(tmp_path / name)
    (message,) = caplog.messages
    assert ":4: the label 'x;y' looks like" in message and message.isprintable() and len(message) <= 300
