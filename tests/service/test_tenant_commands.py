"""`quickstudy tenants`, `quickstudy audit` and `quickstudy keys rotate` on a real Redis server."""

import json
import os
import pwd
import re
import time
from typing import Any

import pytest
import redis
from click.testing import CliRunner

from service.__main__ import main
from tests.conftest import RedisServer
from tests.worker.ledger.jobs import DAY, RECIPE
from worker.ledger.api_keys import Keys
from worker.ledger.key_uses import KeyUses
from worker.ledger.records import Records


def run(server: RedisServer, *arguments: str) -> str:
    return CliRunner().invoke(main, arguments, env={"REDIS_URL": server.url}).output


def test_limits_are_set_listed_and_unset(redis_server: RedisServer) -> None:
    assert run(redis_server, "tenants", "list") == "no tenant has limits of its own\n"
    done = run(redis_server, "tenants", "set", "acme", "--max-jobs", "50", "--share", "2")
    assert done == "acme  MAX_JOBS=50 share=2\nthis holds within 1 s\n"
    run(redis_server, "tenants", "set", "acme", "--max-streams", "0")
    run(redis_server, "tenants", "set", "initech", "--max-aliases", "7")
    assert run(redis_server, "tenants", "list").splitlines() == [
        "acme     MAX_JOBS=50 MAX_STREAMS=0 share=2",
        "initech  MAX_ALIASES=7",
    ]
    assert json.loads(run(redis_server, "tenants", "list", "--json"))[0] == {
        "tenant": "acme",
        "limits": {"MAX_JOBS": 50, "MAX_STREAMS": 0},
        "share": 2,
    }
    assert run(redis_server, "tenants", "unset", "acme", "--max-jobs") == "acme has the defaults again: MAX_JOBS\n"
    assert run(redis_server, "tenants", "unset", "acme") == "acme has the defaults again\n"
    assert run(redis_server, "tenants", "list") == "initech  MAX_ALIASES=7\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("set", "acme"), "error: expected at least one of --max-adapters, --max-adapter-bytes, .*, --share; see .* --help\n"),
        (("set", "A b", "--max-jobs", "1"), "error: TENANT: expected 1 to 63 lowercase letters.*, got 'A b'; see .* --help\n"),
        (("unset", "acme"), "error: tenant acme has no limits of its own; `quickstudy tenants list` shows all\n"),
        (("unset", "acme", "--max-jobs"), "error: tenant acme has no MAX_JOBS of its own; .*\n"),
        (("set", "acme", "--max-jobs", "-1"), r"error: Invalid value for '--max-jobs': -1 is not in the range.*\n"),
        (("set", "acme", "--share", "0"), r"error: Invalid value for '--share': 0 is not in the range.*\n"),
    ],
)
def test_wrong_arguments_of_tenants(redis_server: RedisServer, arguments: tuple[str, ...], message: str) -> None:
    assert re.fullmatch(message, run(redis_server, "tenants", *arguments))


def test_the_changes_of_commands_are_in_the_audit_log(redis_server: RedisServer, redis_client: "redis.Redis") -> None:
    scopes = ("--scope", "read", "--scope", "metrics")
    output = run(redis_server, "keys", "create", "--tenant", "acme", *scopes, "--json")
    created: dict[str, Any] = json.JSONDecoder().raw_decode(output)[0]  # a note on the first key follows
    rotated: dict[str, Any] = json.loads(run(redis_server, "keys", "rotate", created["id"], "--json"))
    run(redis_server, "keys", "revoke", rotated["id"])
    run(redis_server, "tenants", "set", "acme", "--max-jobs", "3")
    records = Records(redis_client)
    records.accept("globex", "a1", RECIPE, DAY, ())
    redis_client.zadd("qs:dead", {"globex/a1": 1})
    assert run(redis_server, "jobs", "drop", "globex/a1") == "globex/a1 deleted\n"
    lines = run(redis_server, "audit").splitlines()
    user = pwd.getpwuid(os.getuid()).pw_name
    expected = [
        rf"key\.created +acme  {created['id']}  scopes=read,metrics",
        rf"key\.rotated +acme  {created['id']}  expires_at=\d+ to={rotated['id']}",
        rf"key\.revoked +acme  {rotated['id']}",
        r"limits\.set +acme  acme  MAX_JOBS=3",
        r"adapter\.deleted +globex  a1",
    ]
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\dZ  {pattern}  by command line {user}", line), line
    assert created["key"] not in "\n".join(lines) and rotated["key"] not in "\n".join(lines)
    assert len(run(redis_server, "audit", "--tenant", "globex").splitlines()) == 1
    only = [json.loads(line) for line in run(redis_server, "audit", "--action", "limits.set", "--json").splitlines()]
    assert len(only) == 1 and only[0]["details"] == {"MAX_JOBS": 3} and only[0]["tenant"] == "acme"
    assert only[0]["actor"] == {"kind": "command line", "identity": user, "address": None} and only[0]["request_id"] is None
    time.sleep(1.1)
    assert run(redis_server, "audit", "--since", "1s") == ""
    assert (
        run(redis_server, "audit", "--since", "soon")
        == "error: --since: expected a number and s, m, h or d, got 'soon'; see quickstudy audit --help\n"
    )


def test_a_key_is_rotated_with_its_grace_time(redis_server: RedisServer, redis_client: "redis.Redis") -> None:
    keys = Keys(redis_client)
    old = keys.create("acme", "laptop", ["predict"])[0]
    lines = run(redis_server, "keys", "rotate", old, "--grace", "2h").splitlines()
    new = next(identity for identity, _ in keys.list() if identity != old)
    assert lines[0].startswith(f"qs_{new}_") and lines[2] == f"key {old} stops working after 2h"
    assert lines[1] == f"key {new} of tenant acme (predict); store it now, it cannot be shown again"
    replaced, now = keys.find(old)
    assert replaced is not None and replaced.expires_at is not None and abs(replaced.expires_at - now - 7_200_000) < 60_000
    assert run(redis_server, "keys", "rotate", new, "--grace", "0").endswith(f"key {new} stops working within 1 s\n")
    for arguments, message in (
        ((old,), rf"error: ID: expected a valid key that was not rotated yet \({old} is rotated already\), got '{old}'"),
        (("0" * 12,), "error: ID: no key 0{12}; `quickstudy keys list` shows all keys"),
        ((old, "--grace", "x"), "error: --grace: expected a number and s, m, h or d, got 'x'; see quickstudy keys rotate --help"),
        ((lines[0],), "error: ID: expected the 12 characters that `quickstudy keys list` shows; see quickstudy keys rotate --help"),
    ):
        assert re.fullmatch(message + "\n", run(redis_server, "keys", "rotate", *arguments))


def test_keys_that_were_not_used_for_long_are_listed(redis_server: RedisServer, redis_client: "redis.Redis") -> None:
    keys = Keys(redis_client)
    ids = [keys.create("acme", name, ["read"])[0] for name in ("long ago", "just now", "never", "revoked")]
    keys.revoke(ids[3])

    def unused(time: str) -> list[str]:
        return [line.split()[0] for line in run(redis_server, "keys", "list", "--unused-for", time).splitlines()]

    assert unused("1s") == []  # nobody has recorded uses yet
    KeyUses(redis_client).record({ids[0]: 91 * DAY, ids[1]: 0})
    assert unused("90d") == [ids[0]] and unused("92d") == []
    time.sleep(1.05)
    assert set(unused("1s")) == set(ids[:3])
    lines = {line.split()[0]: line for line in run(redis_server, "keys", "list").splitlines()}
    assert re.fullmatch(rf"{ids[1]}  acme  valid    read +used \d{{4}}-\d\d-\d\d \d\d:\d\dZ  just now", lines[ids[1]])
    assert re.fullmatch(rf"{ids[2]}  acme  valid    read +never", lines[ids[2]])
    used = {key["id"]: key["last_used_at"] for key in json.loads(run(redis_server, "keys", "list", "--json"))}
    assert used[ids[0]] < used[ids[1]] and used[ids[2]] is None


@pytest.mark.parametrize(
    ("arguments", "broken", "message"),
    [
        (("tenants", "set", "acme", "--share", "2"), "qs:tenants", "the limits were not set"),
        (("tenants", "unset", "acme"), "qs:tenants", "the limits were not unset"),
        (("tenants", "list"), "qs:tenants", "the tenants were not listed"),
        (("audit",), "qs:audit", "the audit log was not printed"),
        (("keys", "rotate", "0" * 12), "qs:keys", "the key was not rotated"),
        (("keys", "list"), "qs:key_uses", "the keys were not listed"),
    ],
)
def test_an_error_of_the_records_is_one_line(
    redis_server: RedisServer, redis_client: "redis.Redis", arguments: tuple[str, ...], broken: str, message: str
) -> None:
    redis_client.set(broken, "another type")
    assert run(redis_server, *arguments) == f"error: {message}: ResponseError\n"
