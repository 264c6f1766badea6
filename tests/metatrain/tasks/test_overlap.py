"""The overlap between data sets: which texts count as the same, and what is removed and said."""

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from metatrain.cli import main
from metatrain.errors import DataError
from metatrain.tasks.episodes import Dataset
from metatrain.tasks.normal_form import normal_form
from metatrain.tasks.overlap import without_overlap
from metatrain.training.data import read_data
from metatrain.training.run import train
from tests.metatrain.training.plans import content, recipe

SAME = [
    ("  Hello,   THERE! ", "hello there"),
    ("Hello , there !", "hello there"),  # as some data sets separate tokens
    ('"What is that?" (he asked)...', "what is that he asked"),
    ("‘Don’t’ – she said", "don't she said"),
    ("a well-known thing", "a well known thing"),
    ("yes—no", "yes no"),
    ("wait...what", "wait...what"),
    ("...and then", "and then"),
    ("I paid 5.", "I paid 5"),
    ("is it 20?", "is it 20"),
    ("text 20!", "text 20"),
    ("STRASSE", "straße"),
    ("ＦＵＬＬ ｗｉｄｔｈ！", "full width"),
    ("１２３円", "123円"),
    ("ｶﾀｶﾅ", "カタカナ"),
    ("你好，世界！", "你好 世界"),
    ("「はい」。", "はい"),
    ("क्या हाल है?", "क्या हाल है"),
    ("नमस्ते।", "नमस्ते"),
    ("مرحبا، كيف حالك؟", "مرحبا كيف حالك"),
    ("¿Qué tal?", "qué tal"),
    (unicodedata.normalize("NFD", "Résumé"), "résumé"),
    (unicodedata.normalize("NFD", "한국어"), "한국어"),
    (unicodedata.normalize("NFD", "Tiếng Việt"), "tiếng việt"),
    ("❤️ it", "❤ it"),
    ("so\u00adft \u200bhy\ufeffphen", "soft hyphen"),
    ("−5 degrees", "-5 degrees"),
    ("non\u00a0breaking\u3000space", "non breaking space"),
    ("great 😀!", "great 😀"),
    ("C++.", "c++"),
]
DIFFERENT = [
    ("😀", "😡"),
    ("👍", "👍🏿"),
    ("👩‍💻", "👨‍💻"),
    ("👩‍💻", "👩💻"),
    ("🇩🇪", "🇫🇷"),
    (
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    ),
    ("1️⃣", "2️⃣"),
    ("so good 👍", "so good 👎"),
    ("great :)", "great :("),
    ("great:)", "great:("),
    ("C++", "C#"),
    ("C++", "C"),
    ("write C++ today", "write C# today"),
    (".NET", "net"),
    ("node.js", "nodejs"),
    ("-5 degrees", "5 degrees"),
    ("- 5 degrees", "5 degrees"),
    ("7 - 2", "7 2"),
    ("x - y", "x y"),
    ("x-y", "x y"),
    ("a != b", "a == b"),
    ("a!=b", "a=b"),
    ("x ≤ 5", "x ≥ 5"),
    ("3 × 4", "3 ÷ 4"),
    ("A ∪ B", "A ∩ B"),
    ("5'", '5"'),
    ("10²", "102"),
    ("H₂O", "H2O"),
    ("½", "12"),
    ("50%", "50"),
    ("$5", "5"),
    ("+1", "-1"),
    ("3.5", "35"),
    ("3,500", "3500"),
    ("ratio 3:2", "ratio 32"),
    ("ratio 3 : 2", "ratio 3 2"),
    ("it's", "its"),
    ("don't", "dont"),
    ("/etc", "etc"),
    ("#happy", "happy"),
    ("rm -rf", "rm rf"),
    ("कि", "की"),
    ("दिन", "दीन"),
    ("बल", "बाल"),
    ("ใกล้", "ไกล"),
    ("มา", "ม้า"),
    ("คาว", "ข้าว"),
    ("resume", "résumé"),
    ("が", "か"),
    ("مِن", "مَن"),
    ("?", "!"),
    ("...", "---"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_differences_without_meaning_are_ignored(one: str, other: str) -> None:
    assert normal_form(one) == normal_form(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_carries_meaning_is_kept(one: str, other: str) -> None:
    assert normal_form(one) != normal_form(other)


@given(st.text())
def test_a_normal_form_is_empty_only_without_visible_characters(text: str) -> None:
    form = normal_form(text)
    assert form == " ".join(form.split())
    if any(unicodedata.category(character)[0] in "LNPS" for character in text):
        assert form


def test_shared_texts_and_renamed_classes_are_removed() -> None:
    train = Dataset("t", {"same": ("Hello, there!", "good day", "hi"), "new": (*(f"new {i}" for i in range(30)), "Bye.")})
    held_out = Dataset("h", {"greet": ("hello there", "hi"), "leave": ("bye",)})
    kept, removals = without_overlap([train], [held_out])
    assert kept[0].texts == {"new": tuple(f"new {i}" for i in range(30))}
    assert [removal.message_with_example for removal in removals] == [
        "t/same: class removed: 2 of 3 texts (more than 5 %) are in h/greet too, so both count as one class; 'Hello, there!' is "
        "'hello there' there",
        "t/new: 1 of 31 texts removed: h/leave or another class has them too; 'Bye.' is 'bye' there",
    ]
    assert "Bye" not in removals[1].message and removals[1].message_with_example.startswith(removals[1].message)


@pytest.mark.parametrize("order", [1, -1])
def test_a_text_of_several_classes_counts_for_each_of_them_in_any_order(order: int) -> None:
    """Share 4 of 60 texts with the class "a", two of which the class "b" has too."""
    train = Dataset("t", {"c": tuple(f"text {i}" for i in range(60))})
    others = [("a", ("text 0", "text 1", "text 2", "text 3")), ("b", ("text 2", "text 3", "else"))]
    kept, (removal,) = without_overlap([train], [Dataset("h", dict(others[::order]))])
    assert kept == [] and (removal.removed, removal.other_place, removal.whole_class) == (4, "h/a", True)


@pytest.mark.parametrize(("texts", "left"), [(19, 0), (20, 19)])
def test_one_shared_text_removes_a_class_of_fewer_than_20_texts(texts: int, left: int) -> None:
    train = Dataset("t", {"thanks": ("Thank you!", *(f"text {i}" for i in range(texts - 1))), "other": ("unlike",)})
    kept, (removal,) = without_overlap([train], [Dataset("h", {"greet": ("thank you", "hi")})])
    assert len(kept[0].texts.get("thanks", ())) == left
    assert ("class removed: 1 of 19 texts (more than 5 %) are in h/greet too" in removal.message) == (left == 0)


def test_a_class_without_any_text_left_is_removed() -> None:
    texts = tuple(f"text {i}" for i in range(40))
    train, held_out = Dataset("t", {"all": texts}), Dataset("h", {f"c{i}": (text,) for i, text in enumerate(texts)})
    kept, (removal,) = without_overlap([train], [held_out])
    assert kept == [] and (removal.removed, removal.of, removal.whole_class) == (40, 40, False)


def test_messages_are_short_and_have_no_control_characters(tiny_folder: Path, tmp_path: Path) -> None:
    long = "\x1b[31m" + "very " * 100
    few = {"l" * 300: [f"{long} {i}" for i in range(100)], long: ["x"]}
    data: Any = {
        "train": [_write(tmp_path, "t" * 90, few)],
        "valid": [_write(tmp_path, "v" * 90, {"\x1b" + "m" * 90: few["l" * 300], "a": ["b"]})],
    }
    with pytest.raises(DataError) as error:
        read_data(recipe(tiny_folder, data=data, validation={"ways": 2}), tmp_path)
    assert "100 of 100 texts" in str(error.value) and len(str(error.value)) <= 300 and str(error.value).isprintable()


def _write(folder: Path, name: str, classes: dict[str, list[str]]) -> dict[str, str]:
    rows = [{"text": text, "label": label} for label, texts in classes.items() for text in texts]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": name}


def _words(beginning: str) -> list[str]:
    return [f"{beginning} number {i}" for i in range(12)]


def test_sets_that_share_only_signs_and_emoji_do_not_overlap(tiny_folder: Path, tmp_path: Path) -> None:
    """Read data with reactions in emoji, programming languages, temperatures, and texts in Hindi."""
    train = {
        "joy": ["🥳", "🎉", *_words("what a day")],
        "C++": ["C++", *_words("I write C++,")],
        "cold": ["-3", "-12", *_words("it is freezing")],
        "कि": ["कि", *_words("कि")],
    }
    valid = {"sorrow": ["😢", "💔", *_words("what a loss")], "C#": ["C#", *_words("I write C#,")], "की": ["की", *_words("की")]}
    data: Any = {"train": [_write(tmp_path, "train.jsonl", train)], "valid": [_write(tmp_path, "valid.jsonl", valid)]}
    train_sets, valid_sets, dropped = read_data(recipe(tiny_folder, data=data), tmp_path)
    assert dropped == [] and {**train_sets[0].texts} == {label: tuple(texts) for label, texts in train.items()}
    assert list(valid_sets[0].texts) == list(valid)


def test_an_error_about_validation_data_is_true_and_gives_the_reason(tiny_folder: Path, tmp_path: Path) -> None:
    train = {"greet": ["Hello, there!", *_words("greet")], "bye": _words("bye")}
    few: Any = {
        "train": [_write(tmp_path, "train.jsonl", train)],
        "valid": [_write(tmp_path, "few.jsonl", {"a": _words("a"), "b": ["b"]})],
    }
    validation = {"every": 4, "episodes": 4, "ways": 3, "shots": [1, 2]}
    with pytest.raises(DataError) as error:
        read_data(recipe(tiny_folder, data=few, validation=validation), tmp_path)
    assert str(error.value) == "data.valid: expected a set of 3 classes (validation.ways), got at most 2"
    shared = {"a": _words("a"), "b": _words("b"), "hello": ["hello there"]}
    few["valid"] = [_write(tmp_path, "shared.jsonl", shared)]
    with pytest.raises(DataError) as error:
        read_data(recipe(tiny_folder, data=few, validation=validation), tmp_path)
    assert str(error.value) == (
        "data.valid: expected a set of 3 classes (validation.ways), got at most 2 that other data do not have. shared/hello: class "
        "removed: 1 of 1 texts (more than 5 %) are in train/greet too, so both count as one class; 'hello there' is "
        "'Hello, there!' there"
    )
    few["train"], few["held_out"] = (
        few["valid"],
        [_write(tmp_path, "held_out.jsonl", {"x": _words("A,"), "y": _words("B!"), "z": ["HELLO THERE"]})],
    )
    few["valid"] = [_write(tmp_path, "few.jsonl", {"c": _words("c")})]
    with pytest.raises(
        DataError, match=r"^data.train: nothing is left without the texts of data.held_out\. .*'a number 0' is 'A, number 0'"
    ):
        read_data(recipe(tiny_folder, data=few, validation=validation), tmp_path)


def test_the_command_says_what_was_removed(tiny_folder: Path, tmp_path: Path) -> None:
    train = {f"t{i}": [*_words(f"t{i}"), f"shared by {letter}"] for i, letter in enumerate("abcdefghi")}
    valid = {f"v{i}": [*_words(f"v{i}"), *_words(f"more v{i}"), f"Shared by {letter}!"] for i, letter in enumerate("abcdefghi")}
    data: Any = {"train": [_write(tmp_path, "train.jsonl", train)], "valid": [_write(tmp_path, "valid.jsonl", valid)]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content(tiny_folder, data=data)))
    arguments = [
        "train",
        str(tmp_path / "recipe.yaml"),
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "run"),
        "--max-steps",
        "1",
    ]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "overlap between data sets: 9 classes lost texts or were removed" in done.output
    line = "valid/v0: 1 of 25 texts removed: train/t0 or another class has them too"
    assert (
        f"{line}; 'Shared by a!' is 'shared by a' there" in done.output
        and "'Shared by e!'" in done.output
        and "'Shared by f!'" not in done.output
    )
    assert "and 4 more, which log.jsonl lists" in done.output and "Shared by i" in (tmp_path / "run" / "log.jsonl").read_text()
    (written,) = (tmp_path / "run").glob("*/initialization.json")
    provenance = json.loads(written.read_text())["provenance"]
    assert len(provenance["dropped"]) == 9 and "hared by" not in str(provenance["dropped"]) and provenance["normal_form"] == 2


def test_a_checkpoint_is_resumed_unless_the_rules_have_changed_its_data(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train a step with the first version of the rules, in which `C++` was `C#`, then with this one."""
    train_set = _write(tmp_path, "train.jsonl", {f"t{i}": [*_words(f"t{i}"), "C++"] for i in range(5)})
    others = {"other": {"v": ["C#"]}, "words": {"v": ["something else"]}}
    valid_set = _write(tmp_path, "valid.jsonl", {f"v{i}": _words(f"v{i}") for i in range(4)})
    for name, held_out in others.items():
        data: Any = {"train": [train_set], "valid": [valid_set], "held_out": [_write(tmp_path, f"{name}.jsonl", held_out)]}
        plan = recipe(tiny_folder, data=data)
        with monkeypatch.context() as before:
            before.setattr("metatrain.tasks.overlap.normal_form", lambda text: re.sub(r"\W+", " ", text.lower()).strip())
            before.setattr("metatrain.tasks.overlap.LARGEST_SHARE", 0.5)
            train(plan, tmp_path, tmp_path / name, max_steps=1)
        monkeypatch.setattr("metatrain.tasks.overlap.LARGEST_SHARE", 0.5)
        if name == "words":
            train(plan, tmp_path, tmp_path / name, max_steps=2)
        else:
            with pytest.raises(DataError, match="belongs to another recipe, version, base model or data; choose another --out"):
                train(plan, tmp_path, tmp_path / name, max_steps=2)
