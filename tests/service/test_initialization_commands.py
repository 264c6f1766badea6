"""`quickstudy initializations` on a real Redis server: messages of one line."""

from dataclasses import replace
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner

from metatrain.artifacts.baselines import lora_from_zero
from metatrain.artifacts.initialization import save_initialization
from metatrain.models.base import Base
from service.__main__ import main
from tests.conftest import RedisServer
from worker.ledger.initializations import StoredInitialization
from worker.ledger.records import Records

STORED = StoredInitialization(b"bytes", "plain", "base", "tiny", "classes")


def run(server: RedisServer, *arguments: str) -> str:
    return CliRunner().invoke(main, ["initializations", *arguments], env={"REDIS_URL": server.url}).output


def test_names_move_and_unneeded_initializations_are_forgotten(redis_server: RedisServer, redis_client: "redis.Redis") -> None:
    store = Records(redis_client).initializations
    assert run(redis_server, "list") == "no stored initializations\n"
    for digest in ("ab" * 32, "ac" * 32):
        store.store(digest, STORED)
    assert run(redis_server, "move", "mine", "abababab") == "mine now means abababababababab on tiny\n"
    assert store.pointers() == {("base", "mine"): "ab" * 32}
    assert run(redis_server, "list").splitlines() == [
        "abababababababab  plain  tiny  5 bytes  0 records  ← mine",
        "acacacacacacacac  plain  tiny  5 bytes  0 records",
    ]
    assert run(redis_server, "forget", "acacacac") == "acacacacacacacac forgotten\n"
    assert run(redis_server, "move", "mine", "--reset") == ""
    assert run(redis_server, "forget", "abababab") == "abababababababab forgotten\n"
    assert store.digests() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("move", "mine"), "expected either DIGEST or --reset"),
        (("move", "mine", "ab" * 4, "--reset"), "expected either DIGEST or --reset"),
        (("move", "mine", "a"), "DIGEST: expected 8 to 64 hexadecimal digits, got 'a'"),
        (("forget", "f" * 8), "DIGEST: expected the beginning of one stored digest, none begin with 'ffffffff'"),
        (("forget", ""), "DIGEST: expected 8 to 64 hexadecimal digits, got ''"),
        (("move", "a\nb", "ab" * 32), "NAME: expected 1 to 100 letters, digits, spaces and . : / _ -, got 'a\\nb'"),
        (("move", "", "ab" * 32), "NAME: expected 1 to 100 letters, digits, spaces and . : / _ -, got ''"),
        (("move", "other", "--reset"), "NAME: expected one with a pointer, got 'other'"),
    ],
)
def test_wrong_arguments_are_one_line(
    redis_server: RedisServer, redis_client: "redis.Redis", arguments: tuple[str, ...], message: str
) -> None:
    for digest in ("ab" * 32, "ac" * 32):
        Records(redis_client).initializations.store(digest, STORED)
    printed = run(redis_server, *arguments)
    assert printed in (f"error: {message}\n", f"error: {message}; see quickstudy initializations {arguments[0]} --help\n")


def test_an_error_of_the_records_is_one_line(redis_server: RedisServer, redis_client: "redis.Redis") -> None:
    redis_client.set("qs:initialization_names", "not a hash")
    assert run(redis_server, "list") == "error: the initializations were not listed: ResponseError\n"


def test_what_a_folder_has_for_a_service_is_checked(tiny: Base, tiny_folder: Path, tmp_path: Path) -> None:
    init = lora_from_zero(tiny)
    save_initialization(replace(init, name="mine"), tmp_path / "mine", tiny.attach(init.delta))
    environment = {"BASE_MODEL": str(tiny_folder), "PRECISION": "float32", "REDIS_URL": "", "INITIALIZATIONS_DIR": str(tmp_path)}
    done = CliRunner().invoke(main, ["initializations", "check"], env=environment)
    assert (done.exit_code, done.output) == (0, f"'mine' is taken, for {tiny.spec.model}\n")
    save_initialization(replace(init, name="bad"), tmp_path / "bad\x1b[31m", tiny.attach(init.delta))
    (tmp_path / "bad\x1b[31m" / "inner_lr.safetensors").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    done = CliRunner().invoke(main, ["initializations", "check", str(tmp_path)], env=environment)
    taken, empty, bad = done.output.splitlines()
    assert done.exit_code == 1 and taken.startswith("'mine' is taken")
    assert empty == "'empty' is not taken: it has no initialization.json"
    assert bad.startswith("'bad\\x1b[31m' is not taken: ") and "not a safetensors file: 0 bytes" in bad and bad.isprintable()
    for folder, message in ((tmp_path / "mine", "is an initialization itself"), (tmp_path / "none", "expected a folder of")):
        done = CliRunner().invoke(main, ["initializations", "check", str(folder)], env=environment)
        assert done.exit_code == 1 and done.stderr.startswith("error: INITIALIZATIONS_DIR: ") and message in done.stderr
