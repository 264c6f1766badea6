"""`quickstudy keys` when Redis answers a ping but then fails on the command."""

import pytest
import redis
from click.testing import CliRunner

from service.__main__ import main
from tests.conftest import RedisServer


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("create",), "the key was not created"),
        (("list",), "the keys were not listed"),
        (("revoke", "0123456789ab"), "the key was not revoked"),
    ],
    ids=["create", "list", "revoke"],
)
def test_an_error_of_the_records_is_one_line(
    redis_server: RedisServer, redis_client: "redis.Redis", command: tuple[str, ...], message: str
) -> None:
    redis_client.set("qs:keys", "not a hash")
    done = CliRunner().invoke(main, ["keys", *command], env={"REDIS_URL": redis_server.url})
    assert isinstance(done.exception, SystemExit) and done.exit_code == 1
    assert done.output == f"error: {message}: ResponseError\n"
