"""`quickstudy keys` where the records answer at first, and refuse then."""

import pytest
import redis
from click.testing import CliRunner

from service.__main__ import main
from tests.conftest import RedisServer


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("create",), "the key is not made"),
        (("list",), "the keys are not listed"),
        (("revoke", "0123456789ab"), "the key is not revoked"),
    ],
    ids=["create", "list", "revoke"],
)
def test_records_that_refuse_are_one_line(
    redis_server: RedisServer, redis_client: "redis.Redis", command: tuple[str, ...], said: str
) -> None:
    redis_client.set("qs:keys", "no hash")
    done = CliRunner().invoke(main, ["keys", *command], env={"REDIS_URL": redis_server.url})
    assert isinstance(done.exception, SystemExit) and done.exit_code == 1
    assert done.output == f"error: {said}: ResponseError\n"
