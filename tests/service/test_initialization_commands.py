"""`quickstudy initializations` on a real Redis server: messages of one line."""

import pytest
import redis
from click.testing import CliRunner

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
        (("move", "mine", "ab", "--reset"), "expected either DIGEST or --reset"),
        (("move", "mine", "a"), "DIGEST: expected at least 8 hexadecimal digits, got 'a'"),
        (("forget", "f" * 8), "DIGEST: expected the beginning of one stored digest, none begin with 'ffffffff'"),
        (("forget", ""), "DIGEST: expected at least 8 hexadecimal digits, got ''"),
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
    assert run(redis_server, *arguments) == f"error: {message}\n"


def test_an_error_of_the_records_is_one_line(redis_server: RedisServer, redis_client: "redis.Redis") -> None:
    redis_client.set("qs:initialization_names", "not a hash")
    assert run(redis_server, "list") == "error: the initializations were not listed: ResponseError\n"
