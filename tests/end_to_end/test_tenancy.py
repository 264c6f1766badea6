"""Every route with every kind of API key, on a service that logs at DEBUG level.

Each route needs a row in `ROWS`; a test fails if one is missing.
"""

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from fastapi.routing import iter_route_contexts

from service.__main__ import main
from service.http.app import create_app
from service.http.auth import PUBLIC
from service.http.docs_page import DOCS_PATHS
from service.settings import ServiceSettings
from tests.end_to_end.conftest import Served, served
from worker.ledger.api_keys import KEY_CACHE_SECONDS, Scope
from worker.ledger.usage import LIMITS

SUPPORT = [
    {"input": "please close the account now", "label": "close"},
    {"input": "close my card", "label": "close"},
    {"input": "order a pizza today", "label": "order"},
    {"input": "order the pizza", "label": "order"},
]
BODY: dict[str, Any] = {"support": SUPPORT, "initialization": "lora-from-zero"}


@dataclass(frozen=True)
class Row:
    """The expected behaviour of one route.

    Arguments:
        scope: the scope that the route requires. If None, no key is needed.
        body: the JSON body to send.
        own: allowed statuses for the tenant that owns the adapter or alias.
        other: allowed statuses for another tenant.
        before: a request (method, path, body) to make first.
    """

    scope: Scope | None
    body: Any = None
    own: tuple[int, ...] = (200,)
    other: tuple[int, ...] = (404,)
    before: tuple[str, str, Any] | None = None


ALIASED = ("PUT", "/aliases/mine", {"adapter_id": "{id}"})
ROWS = {
    ("POST", "/adapt"): Row("adapt", BODY, (200, 202), (200, 202)),
    ("GET", "/adapters"): Row("read", other=(200,)),
    ("GET", "/adapters/{}"): Row("read"),
    ("PATCH", "/adapters/{}"): Row("adapt", {"name": "a name"}),
    ("DELETE", "/adapters/{}"): Row("adapt", own=(204,)),
    ("PUT", "/adapters/{}/pin"): Row("adapt", own=(204,)),
    ("DELETE", "/adapters/{}/pin"): Row("adapt", own=(204,)),
    ("GET", "/adapters/{}/events"): Row("read"),
    ("POST", "/adapters/{}/examples"): Row("adapt", {"support": [{"input": "close it", "label": "close"}]}, (200, 202)),
    ("POST", "/adapters/{}/score"): Row("predict", {"examples": [{"input": "close it", "label": "close"}]}),
    ("POST", "/predict"): Row("predict", {"adapter_id": "{id}", "inputs": ["order a pizza"]}),
    ("GET", "/aliases"): Row("read", other=(200,)),
    ("GET", "/aliases/{}"): Row("read", before=ALIASED),
    ("PUT", "/aliases/{}"): Row("adapt", {"adapter_id": "{id}"}),
    ("POST", "/aliases/{}/rollback"): Row("adapt", own=(409,), before=ALIASED),  # it points at its first adapter
    ("DELETE", "/aliases/{}"): Row("adapt", own=(204,), before=ALIASED),
    ("GET", "/initializations"): Row("read", other=(200,)),
    ("GET", "/usage"): Row("read", other=(200,)),
    ("GET", "/audit"): Row("admin", other=(200,)),
    ("GET", "/metrics"): Row("metrics", other=(200,)),
    ("GET", "/healthz"): Row(None),
    ("GET", "/readyz"): Row(None),
    **{("GET", path): Row(None) for path in DOCS_PATHS},
    ("GET", "/openapi.json"): Row(None),
}


def routes() -> list[tuple[str, str]]:
    """Return (method, path template) for every route of the application, with {} for each parameter."""
    app = create_app(ServiceSettings(), [])
    templates: list[tuple[str, str]] = []
    for route in iter_route_contexts(app.routes):
        assert route.path is not None and route.methods, f"{route}: expected a route with a path and methods"
        templates += [(method, re.sub(r"\{[^}]*\}", "{}", route.path)) for method in sorted(set(route.methods) - {"HEAD"})]
    return templates


@dataclass
class Tenancy:
    """A service with API keys of several tenants.

    `keys` maps a key's name in `WHO` to the key, and `ids` maps the name to the key's id.
    """

    service: Served
    data_dir: Path
    keys: dict[str, str]
    ids: dict[str, str]
    open_answers: dict[str, int] = field(default_factory=dict)

    def create_key(self, *arguments: str) -> dict[str, Any]:
        """Create a key with `quickstudy keys create`. Return its JSON description, which includes the key."""
        done = CliRunner().invoke(main, ["keys", "--data-dir", str(self.data_dir), "create", "--json", *arguments])
        assert done.exit_code == 0, done.output
        created: dict[str, Any] = json.loads(done.stdout)
        return created

    def ask(self, who: str, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        """Send a request with the key named `who`, or without a key if `who` is ""."""
        headers = {"Authorization": f"Bearer {self.keys[who]}"} if who else {}
        return self.service.http.request(method, path, json=body, headers={**headers, **more.pop("headers", {})}, **more)

    def adapter(self, who: str, seed: int = 0) -> str:
        """Create an adapter with the key named `who` and return the adapter's id."""
        answer = self.ask(who, "POST", "/adapt", {**BODY, "options": {"seed": seed}}, headers={"Prefer": "wait=30"})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["adapter_id"])


WHO = {
    "own": ("acme", "admin"),
    "other": ("globex", "admin"),
    "read": ("acme", "read"),
    "metrics": ("acme", "metrics"),
    "adapt": ("acme", "adapt"),
    "predict": ("acme", "predict"),
    "both": ("acme", "adapt", "predict"),
    "revoked": ("acme", "admin"),
    "expired": ("acme", "admin"),
    "many": ("initech", "adapt"),
    "often": ("hooli", "predict"),
}


KEYS_WITH = {
    "read": ("read", "adapt", "predict", "own"),  # keys of earlier versions have one of the last three scopes
    "adapt": ("adapt", "own"),
    "predict": ("predict", "own"),
    "metrics": ("metrics", "own"),
    "admin": ("own",),
}
KEYS_WITHOUT = {scope: {"read", "metrics", "adapt", "predict"} - set(keys) for scope, keys in KEYS_WITH.items()}


@pytest.fixture(scope="module")
def tenancy(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenancy]:
    folder = tmp_path_factory.mktemp("tenancy")
    limits = {"MAX_ADAPTERS": "12", "MAX_ALIASES": "5", "MAX_REQUESTS_A_MINUTE": "500"}
    with served(folder, {**environment, **limits, "LOG_LEVEL": "DEBUG"}) as running:
        running.wait_ready()
        state = Tenancy(running, folder / "data", {"forged": f"qs_{'0' * 12}_{'a' * 43}"}, {})
        state.open_answers = {
            "no key": state.ask("", "GET", "/adapters").status_code,
            "admin": state.ask("", "GET", "/metrics").status_code,
            "forged": state.ask("forged", "GET", "/adapters").status_code,
        }
        for who, (tenant, *scopes) in WHO.items():
            expires = ("--expires", "1s") if who == "expired" else ()
            scope_options = [part for scope in scopes for part in ("--scope", scope)]
            created = state.create_key("--tenant", tenant, "--name", who, *expires, *scope_options)
            state.keys[who], state.ids[who] = created["key"], created["id"]
        assert state.ask("revoked", "GET", "/adapters").status_code == 200
        done = CliRunner().invoke(main, ["keys", "--data-dir", str(state.data_dir), "revoke", state.ids["revoked"]])
        assert done.exit_code == 0, done.output
        time.sleep(KEY_CACHE_SECONDS + 0.1)
        yield state


def test_an_open_service_needs_no_key_but_refuses_a_forged_one(tenancy: Tenancy) -> None:
    assert tenancy.open_answers == {"no key": 200, "admin": 200, "forged": 401}


def test_every_route_has_a_row() -> None:
    assert set(routes()) <= ROWS.keys()


@pytest.mark.parametrize(("method", "template"), routes(), ids=lambda part: str(part))
def test_a_route_by_every_kind_of_key(tenancy: Tenancy, method: str, template: str) -> None:
    row = ROWS[method, template]
    adapter = tenancy.adapter("own", seed=1)
    path = template.replace("/aliases/{}", "/aliases/mine").replace("{}", adapter)

    def filled(body: Any) -> Any:
        return json.loads(json.dumps(body).replace("{id}", adapter))

    if row.before is not None:
        assert tenancy.ask("own", row.before[0], row.before[1], filled(row.before[2])).status_code == 200
    refusals = [tenancy.ask(who, method, path, filled(row.body)) for who in ("", "forged", "revoked", "expired")]
    if row.scope is None:
        assert path in PUBLIC and {answer.status_code for answer in refusals} == {200}
        return
    problems = [{**answer.json(), "request_id": ""} for answer in refusals]
    assert all(answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer" for answer in refusals)
    assert all(problem == problems[0] for problem in problems)  # the response does not reveal why the key is refused
    for who in KEYS_WITHOUT[row.scope]:
        answer = tenancy.ask(who, method, path, filled(row.body))
        assert answer.status_code == 403 and answer.json()["scope"] == row.scope, who
    answer = tenancy.ask("other", method, path, filled(row.body))
    assert answer.status_code in row.other, answer.text
    assert answer.status_code == 404 or adapter not in answer.text
    for who in KEYS_WITH[row.scope]:
        if row.before is not None:
            tenancy.ask("own", row.before[0], row.before[1], filled(row.before[2]))
        adapter = tenancy.adapter("own", seed=1)  # again, if the last key has deleted it
        answer = tenancy.ask(who, method, path, filled(row.body))
        assert answer.status_code in row.own, answer.text


def test_anothers_adapter_and_one_that_never_was_get_the_same_answer(tenancy: Tenancy) -> None:
    adapter = tenancy.adapter("own", seed=2)
    nowhere = "a" + "0" * (len(adapter) - 1)
    for method, path, body in (
        ("GET", "/adapters/{id}", None),
        ("DELETE", "/adapters/{id}", None),
        ("PUT", "/adapters/{id}/pin", None),
        ("POST", "/predict", {"adapter_id": "{id}", "inputs": ["order a pizza"]}),
    ):
        answers = [
            tenancy.ask("other", method, path.replace("{id}", which), json.loads(json.dumps(body).replace("{id}", which)))
            for which in (adapter, nowhere)
        ]
        assert [answer.status_code for answer in answers] == [404, 404]
        problems = [
            {**answer.json(), "detail": answer.json()["detail"].replace(which, ""), "request_id": ""}
            for answer, which in zip(answers, (adapter, nowhere), strict=True)
        ]
        assert problems[0] == problems[1]
    assert tenancy.ask("own", "GET", f"/adapters/{adapter}").json()["status"] == "ready"


def test_the_same_request_of_two_tenants_is_two_adapters(tenancy: Tenancy) -> None:
    own, other = tenancy.adapter("own", seed=3), tenancy.adapter("other", seed=3)
    assert own != other
    assert tenancy.ask("other", "DELETE", f"/adapters/{other}").status_code == 204
    listed = [adapter["adapter_id"] for adapter in tenancy.ask("other", "GET", "/adapters").json()["adapters"]]
    assert own not in listed and other not in listed
    assert tenancy.ask("own", "POST", "/predict", {"adapter_id": own, "inputs": ["order a pizza"]}).status_code == 200


def test_concurrent_requests_do_not_exceed_a_limit(tenancy: Tenancy) -> None:
    def post(seed: int) -> httpx.Response:
        return tenancy.ask("many", "POST", "/adapt", {**BODY, "options": {"seed": seed}}, headers={"Prefer": "wait=30"})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, range(20)))
    accepted = [seed for seed, answer in enumerate(answers) if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(accepted) == 12 and {answer.status_code for answer in refused} == {429}
    assert refused[0].headers["content-type"] == "application/problem+json" and int(refused[0].headers["Retry-After"]) >= 1
    assert {name: refused[0].json()[name] for name in ("limit", "most", "used")} == {
        "limit": "MAX_ADAPTERS",
        "most": 12,
        "used": 12,
    }
    assert post(accepted[0]).status_code == 200  # the adapter exists already
    usage = tenancy.ask("many", "GET", "/usage").json()
    assert (usage["tenant"], usage["adapters"], usage["jobs"], usage["adaptations"]) == ("initech", 12, 0, 12)
    labels = sum(len(adapter["labels"]) for adapter in tenancy.ask("many", "GET", "/adapters").json()["adapters"])
    # All adapters have the same size, and it is larger than the size of their heads alone.
    assert labels == 24 and usage["bytes"] % 12 == 0 and usage["bytes"] > 12 * 4 * 2 * 33
    assert tenancy.ask("many", "DELETE", f"/adapters/{answers[accepted[1]].json()['adapter_id']}").status_code == 204
    after = tenancy.ask("many", "GET", "/usage").json()
    assert after["adapters"] == 11 and after["bytes"] == usage["bytes"] * 11 // 12
    assert post(99).status_code == 200
    keyed = {"Idempotency-Key": "the twelfth"}
    for seed in (100, 101):  # a refused request does not use up the idempotency key
        body = {**BODY, "options": {"seed": seed}}
        assert tenancy.ask("many", "POST", "/adapt", body, headers=keyed).status_code == 429
    assert tenancy.ask("many", "DELETE", f"/adapters/{answers[accepted[2]].json()['adapter_id']}").status_code == 204
    assert tenancy.ask("many", "POST", "/adapt", {**BODY, "options": {"seed": 102}}, headers=keyed).status_code in (200, 202)
    assert tenancy.ask("many", "POST", "/adapt", body, headers=keyed).status_code == 422


def test_the_limit_on_requests_a_minute_is_per_tenant(tenancy: Tenancy) -> None:
    def get(_: int) -> httpx.Response:
        return tenancy.ask("often", "GET", "/adapters")

    begun = time.time() // 60
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(get, range(1_010)))
    minutes = time.time() // 60 - begun + 1
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["limit"] == "MAX_REQUESTS_A_MINUTE" and refused.json()["used"] == refused.json()["most"] == 500
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert 500 <= sum(answer.status_code == 200 for answer in answers) <= 500 * minutes  # exactly 500 within one minute
    assert tenancy.ask("own", "GET", "/adapters").status_code == 200


def test_aliases_are_limited(tenancy: Tenancy) -> None:
    adapter = tenancy.adapter("other", seed=6)
    existing = tenancy.ask("other", "GET", "/usage").json()["aliases"]
    answers = [tenancy.ask("other", "PUT", f"/aliases/n{n}", {"adapter_id": adapter}) for n in range(6 - existing)]
    assert [answer.status_code for answer in answers] == [200] * (5 - existing) + [429]
    assert (answers[-1].json()["limit"], answers[-1].json()["used"], answers[-1].headers["Retry-After"]) == ("MAX_ALIASES", 5, "60")
    refused = tenancy.ask("other", "DELETE", f"/adapters/{adapter}")
    assert refused.status_code == 409 and refused.json()["aliases_total"] == len(refused.json()["aliases"]) == 5 - existing
    for n in range(5 - existing):
        assert tenancy.ask("other", "DELETE", f"/aliases/n{n}").status_code == 204


def test_an_expired_adapter_is_not_brought_back_by_pinning_it(tenancy: Tenancy) -> None:
    body = {**BODY, "options": {"seed": 7}, "ttl_seconds": 1}
    adapter = tenancy.ask("other", "POST", "/adapt", body, headers={"Prefer": "wait=30"}).json()["adapter_id"]
    time.sleep(1.1)
    for method in ("PUT", "DELETE"):
        refused = tenancy.ask("other", method, f"/adapters/{adapter}/pin")
        assert refused.status_code == 409 and refused.json()["adapter_status"] == "expired"
    assert tenancy.ask("other", "GET", f"/adapters/{adapter}").json()["status"] == "expired"


def test_usage_of_another_tenant_needs_the_scope_admin(tenancy: Tenancy) -> None:
    adapter = tenancy.adapter("own", seed=5)
    before = tenancy.ask("predict", "GET", "/usage").json()
    assert tenancy.ask("predict", "POST", "/predict", {"adapter_id": adapter, "inputs": ["a", "b", "c"]}).status_code == 200
    after = tenancy.ask("predict", "GET", "/usage").json()
    assert after["predictions"] == before["predictions"] + 3 and after["tenant"] == "acme"
    chosen = {"MAX_ADAPTERS": 12, "MAX_ALIASES": 5, "MAX_REQUESTS_A_MINUTE": 500}
    assert set(after["limits"]) == set(LIMITS) and after["limits"].items() >= chosen.items()
    assert tenancy.ask("other", "GET", "/usage", params={"tenant": "acme"}).json()["predictions"] == after["predictions"]
    refused = tenancy.ask("both", "GET", "/usage", params={"tenant": "globex"})
    assert refused.status_code == 403 and refused.json()["scope"] == "admin"
    assert tenancy.ask("both", "GET", "/usage", params={"tenant": "acme"}).status_code == 200
    assert tenancy.ask("own", "GET", "/usage", params={"tenant": "a/b"}).status_code == 422


def test_a_key_is_asked_for_before_anything_else(tenancy: Tenancy) -> None:
    http = tenancy.service.http
    headers = {"content-type": "application/json"}
    assert http.post("/adapt", content=b"{nope", headers=headers).status_code == 401
    assert http.post("/adapt", content=b"x" * 200_000, headers=headers).status_code == 401  # not 413, because the body is not read
    assert http.get("/adapters", params={"limit": "many"}).status_code == 401
    assert http.get("/nowhere").status_code == 401 and http.get("/healthz/").status_code == 401
    assert http.get("/adapters", params={"key": tenancy.keys["own"]}).status_code == 401  # a key in the query is ignored


def test_the_key_commands_report_errors_and_show_no_secret(tenancy: Tenancy) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["keys", "--data-dir", str(tenancy.data_dir), *arguments])
        return done.exit_code, done.output + (str(done.exception.code) if isinstance(done.exception, SystemExit) else "")

    code, listed = run("list")
    assert code == 0 and [line.split()[0] for line in listed.splitlines()][: len(WHO)] == list(tenancy.ids.values())
    states = {who: next(line for line in listed.splitlines() if tenancy.ids[who] in line).split()[2] for who in WHO}
    assert states == dict.fromkeys(WHO, "valid") | {"revoked": "revoked", "expired": "expired"}
    described = json.loads(run("list", "--json")[1])
    times = {"created_at", "expires_at", "revoked_at", "last_used_at"}
    assert {"id", "tenant", "name", "scopes", "state", "replaced_by", *times} == described[0].keys()
    assert not any(key[16:] in listed for key in tenancy.keys.values())
    code, output = run("create", "--tenant", "Acme")
    assert code == 2 and "error: --tenant: expected 1 to 63 lowercase letters" in output
    code, output = run("create", "--expires", "soon")
    assert code == 2 and "error: --expires: expected a number and s, m, h or d, got 'soon'" in output
    assert run("create", "--scope", "root")[0] == 2
    code, output = run("revoke", tenancy.keys["own"])
    assert code == 2 and tenancy.keys["own"] not in output  # the whole key was given instead of its id
    assert run("revoke", "0" * 12)[0] == 1


def test_no_key_and_no_input_is_in_a_log_or_on_disk(tenancy: Tenancy) -> None:
    adapter = tenancy.adapter("own", seed=4)
    assert tenancy.ask("own", "POST", "/predict", {"adapter_id": adapter, "inputs": ["sing a very secret song"]}).status_code == 200
    tenancy.ask("own", "POST", "/adapt", {**BODY, "support": [{"input": "sing a very secret song", "label": 7}]})
    tenancy.ask("forged", "POST", "/adapt", BODY)
    logs = tenancy.service.log.read_text() + (tenancy.data_dir / "redis.log").read_text()
    assert " DEBUG service " in logs and " DEBUG worker " in logs and f"key={tenancy.ids['own']}" in logs and "tenant=acme" in logs
    secrets = [key.removeprefix("qs_")[13:] for key in tenancy.keys.values()]
    for text in [*secrets, *(example["input"] for example in SUPPORT), "secret song"]:
        assert text not in logs
    files = [path for path in tenancy.data_dir.rglob("*") if path.is_file()]
    assert len(files) > 2
    for path in files:
        assert not any(secret.encode() in path.read_bytes() for secret in secrets), path
