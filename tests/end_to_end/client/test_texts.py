"""Texts as people have them, such as emoji, Hindi and Chinese, with the default base model."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from quickstudy import AsyncClient, Client, Invalid, Notice

from tests.end_to_end.client.test_commands import run
from tests.end_to_end.conftest import Served, served

EMOJI = [("😀", "pos"), ("😍", "pos"), ("😡", "neg"), ("😭", "neg")]
ACCENT_ALONE = [("\u0301", "a"), ("\u0300", "b"), ("hello there", "a"), ("good bye", "b")]
ACCENTS = [("resume", "continue"), ("résumé", "cv"), ("go on", "continue"), ("my papers", "cv")]
HINDI = [("मेरा पार्सल कहाँ है", "delivery"), ("पैकेज कब आएगा", "delivery"), ("मैं पासवर्ड भूल गया", "login"), ("खाता बंद है", "Login ")]
CHINESE = [("我的包裹在哪里", "delivery"), ("快递什么时候到", "delivery"), ("我忘记了密码", "login"), ("我的账户被锁定了", "login")]
MIXED = [("great 😀", "pos"), ("Great 😍", "pos"), ("great 😀", "pos"), ("bad 😡", "neg"), ("awful 😭", "neg")]


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run the service with its default base model."""
    folder = tmp_path_factory.mktemp("texts")
    with served(folder, {name: value for name, value in os.environ.items() if name != "BASE_MODEL"} | {"THREADS": "1"}) as running:
        running.wait_ready(180)
        yield running


def write(folder: Path, pairs: list[tuple[str, str]]) -> Path:
    """Write a table with a first column that nobody asked for, so that lines and positions differ by two."""
    path = folder / "rows.tsv"
    path.write_text("id\ttext\tlabel\n" + "".join(f"{i}\t{text}\t{label}\n" for i, (text, label) in enumerate(pairs)), "utf-8")
    return path


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (EMOJI, "line 4: label: expected 'pos' as in line 2, which is the same for the base model"),
        (ACCENTS, "line 3: label: expected 'continue' as in line 2, which is the same for the base model"),
        (ACCENT_ALONE, "line 2: input: expected a text of which the base model sees at least one token, got "),
    ],
)
@pytest.mark.parametrize("option", ["--dry-run", "--wait"])
def test_what_the_model_cannot_learn_from_is_refused_by_line(
    default: Served, tmp_path: Path, pairs: list[tuple[str, str]], message: str, option: str
) -> None:
    path = write(tmp_path, pairs)
    done = run(default.url, "adapt", path, option)
    assert done.exit_code == 1 and done.stdout == "" and done.stderr.startswith(f"error: {path}, {message}"), done.output
    assert done.stderr.count("\n") == 1


def test_warnings_are_printed_by_line_of_the_file(default: Served, tmp_path: Path) -> None:
    path = write(tmp_path, MIXED)
    expected = [
        "warning: line 3: the same for the base model as line 2 (it does not know some of their words or characters)",
        "warning: line 4: the same example as line 2",
    ]
    dry = run(default.url, "adapt", path, "--dry-run")
    assert [line for line in dry.stdout.splitlines() if line.startswith("warning")] == expected and dry.stderr == ""
    for options in ([], ["--wait"], ["--json"]):  # the second and the third time, the adapter exists already
        done = run(default.url, "adapt", path, *options)
        assert done.exit_code == 0 and [line for line in done.stderr.splitlines() if line.startswith("warning")] == expected
        assert "warning:" not in done.stdout
    assert json.loads(done.stdout)["warnings"][0]["field"] == "support[1]"


def test_the_clients_return_the_warnings_of_hindi_and_chinese_texts(default: Served) -> None:
    async def adapt(pairs: list[tuple[str, str]]) -> tuple[tuple[Notice, ...], tuple[Notice, ...]]:
        async with AsyncClient(default.url) as client:
            made = await client.adapt(pairs)
            grown = await client.add_examples(made, [("网络很慢", "network"), ("hello\u200b", "network"), ("hello", "network")])
            return made.warnings, grown.warnings

    with Client(default.url) as client:
        hindi = client.adapt(HINDI)
        alike = "the labels 'Login ' and 'login' differ only in case"
        assert any(notice.row is None and notice.message.replace(", ", " and ").startswith(alike) for notice in hindi.warnings)
        assert not any("unknown" in notice.message for notice in hindi.warnings)  # it has the letters of Hindi
        assert client.dry_run(HINDI).warnings == hindi.warnings == client.adapt(HINDI).warnings
        made, grown = asyncio.run(adapt(CHINESE))
        assert (
            made == client.dry_run(CHINESE).warnings
            and made[0].field == "support"
            and "unknown to the base model" in made[0].message
        )
        assert [notice.row for notice in made[1:]] == [0, 1, 2, 3] and all("unknown" in notice.message for notice in made[1:])
        assert [(notice.row, notice.message.split(" (")[0]) for notice in grown] == [
            (2, "the same for the base model as support[1]"),
            (None, "25 of 34 tokens are unknown to the base model: choose a base model that knows these words or characters"),
            (0, "unknown to the base model: 4 of 4 tokens"),
        ]


def test_predictions_and_scores_refuse_a_text_without_a_token(default: Served, tmp_path: Path) -> None:
    expected = "expected a text of which the base model sees at least one token, got "
    with Client(default.url) as client:
        adapter = client.adapt([("how are you", "a"), ("hello there", "a"), ("see you", "b"), ("good bye", "b")])
        assert client.predict(adapter, "hello\u200b there").label == "a"
        with pytest.raises(Invalid, match=r"inputs\[301\]: " + expected) as refused:
            client.predict(adapter, [*["hello"] * 301, "\u00ad", "\u200b"])
        assert refused.value.row == 301
        with pytest.raises(Invalid, match=r"examples\[1\]\.input: " + expected):
            client.score(adapter, [("hello", "a"), ("\ufeff", "b")])
    path = tmp_path / "questions.csv"
    path.write_text("text\nhello\n\u0301\n", "utf-8")
    done = run(default.url, "predict", adapter.adapter_id, path)
    assert done.exit_code == 1 and done.stderr.startswith(f"error: {path}, line 3: {expected}"), done.output
    path.write_text("text\nhello\n\u200b\n", "utf-8")
    done = run(default.url, "predict", adapter.adapter_id, path)
    assert done.exit_code == 2 and done.stderr == f"error: {path}, line 3: expected a text as 'text', got invisible characters\n"
