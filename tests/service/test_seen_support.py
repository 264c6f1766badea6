"""Support sets as the default base model sees them, with a real Redis server."""

from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
import redis

from metatrain.artifacts.baselines import lora_from_zero
from metatrain.models.base import Base
from service.warnings import MOST_OF_A_SORT
from tests.conftest import RedisServer
from tests.service.workerless import running
from worker.kinds.registry import task_kinds
from worker.ledger.encryption import PLAIN
from worker.ledger.ids import adapter_id
from worker.ledger.messages import JobRecipe
from worker.ledger.records import Records

Pairs = Sequence[tuple[str, str]]
FINE: Pairs = [("how are you", "greeting"), ("good morning", "greeting"), ("see you later", "farewell"), ("good bye", "farewell")]
LONG = "the quick brown fox jumps over the lazy dog " * 40


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def http(minilm: Base, redis_server: RedisServer) -> Iterator[httpx.Client]:
    """Run one service for all tests of this module, whose support sets differ."""
    with running(minilm, redis_server, max_examples=3000, max_labels=1000) as client:
        yield client


def body(pairs: Pairs, **options: Any) -> dict[str, Any]:
    support = [{"input": text, "label": label} for text, label in pairs]
    return {"support": support, "initialization": "lora-from-zero", "options": {"steps": 0, **options}}


def post(
    http: httpx.Client, pairs: Pairs, path: str = "/adapt", headers: dict[str, str] | None = None, **options: Any
) -> httpx.Response:
    content = body(pairs, **options)
    if path != "/adapt":
        content = {name: content[name] for name in ("support", "options")}
    return http.post(path, json=content, headers=headers)


def detail(answer: httpx.Response) -> str:
    assert answer.status_code == 422, answer.text
    return str(answer.json()["detail"])


def warnings(answer: httpx.Response) -> list[tuple[str, str]]:
    assert answer.status_code in (200, 202), answer.text
    return [(warning["field"], warning["message"]) for warning in answer.json()["warnings"]]


def put_on_record(minilm: Base, server: RedisServer, pairs: Pairs, **options: Any) -> str:
    """Record an adapter as earlier versions did, which did not look at the tokens. Return its id."""
    records, init = Records(redis.Redis.from_url(server.url), cipher=PLAIN), lora_from_zero(minilm)
    recipe = JobRecipe(
        initialization=init.name,
        initialization_digest=init.digest,
        support=task_kinds()["text-classification"].ordered(list(pairs)),
        steps=0,
        seed=0,
        precision="float32",
        **{"label_words": "auto", **options},
    )
    identity = adapter_id(records.id_key(), "default", recipe)
    records.accept("default", identity, recipe, 3_600_000, (), queue="q")
    return identity


@pytest.mark.parametrize("text", ["\u200b", "\u00ad", "\ufeff\u2060", "\x01\x02", "\u200d\ufe0f", "\u0301", "\u202e \u202c"])
def test_a_text_that_leaves_no_token_counts_as_empty(http: httpx.Client, text: str) -> None:
    refused = post(http, [*FINE, (text, "greeting")])
    assert detail(refused).startswith("support[4].input: expected a text of which the base model sees at least one token, got '")
    assert refused.json()["errors"][0]["field"] == "support[4].input" and detail(refused).isprintable()
    assert warnings(post(http, [*FINE, (f"hi{text}", "greeting")])) == []  # beside others, invisible characters are harmless
    dry = http.post("/adapt", params={"dry_run": "true"}, json=body([*FINE, (text, "greeting")]))
    assert detail(dry) == detail(refused)


@pytest.mark.parametrize("label", ["\u200b\u200b", "\ufeff", "\u00ad \u2060"])
def test_a_label_of_invisible_characters_is_refused_unless_it_is_on_record(
    minilm: Base, redis_server: RedisServer, http: httpx.Client, label: str
) -> None:
    blank = [*FINE, ("thanks", label)]
    assert detail(post(http, blank)).startswith("support[4].label: expected a label with visible characters, got '")
    parent = put_on_record(minilm, redis_server, blank)
    assert post(http, blank).json()["adapter_id"] == parent
    assert post(http, [("many thanks", label)], f"/adapters/{parent}/examples").status_code == 202


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        ("US", "us", "case, accents"),
        ("resume", "résumé", "case, accents"),
        ("naïve", "nai\u0308ve", "case, accents"),  # NFC and NFD
        ("hello there", "hello\u200b there", "invisible"),
        ("a  b", "a b", "spaces"),
        ("Straße", "STRASSE", None),
        ("😀", "😡", "does not know"),
        ("👩‍💻", "👨‍💻", "does not know"),
        ("❤️", "❤", "does not know"),
        ("so 👍", "so 👎", "does not know"),
        ("ใกล้", "ไกล", "does not know"),
        ("你好", "再见", "does not know"),
        ("ＡＢＣ", "ＸＹＺ", "does not know"),
        (f"{LONG} one", f"{LONG} two", "only the first 256 tokens"),
        ("x ≤ 5", "x ≥ 5", None),
        ("C++", "C#", None),
        ("कि", "की", None),
        ("10²", "102", None),
    ],
)
def test_examples_that_the_model_cannot_tell_apart_need_one_label(
    http: httpx.Client, one: str, other: str, why: str | None
) -> None:
    answer = post(http, [*FINE, (one, "a"), (other, "b")])
    if why is None:
        assert answer.status_code == 202
        return
    assert detail(answer).startswith("support[5].label: expected 'a' as in support[4], which is the same for the base model (")
    assert why in detail(answer) and detail(answer).endswith("got 'b'") and len(detail(answer)) < 300
    same_label = warnings(post(http, [*FINE, (one, "a"), (other, "a")]))
    (message,) = [message for field, message in same_label if field == "support[5]"]
    assert message.startswith("the same for the base model as support[4] (") and why in message


def test_a_new_example_is_compared_with_all_labels_of_the_adapter(
    minilm: Base, redis_server: RedisServer, http: httpx.Client
) -> None:
    parent = put_on_record(minilm, redis_server, [("US", "country"), ("us", "pronoun"), ("you", "pronoun")])
    path = f"/adapters/{parent}/examples"
    for label, other in (("country", "pronoun"), ("pronoun", "country"), ("other", "country")):
        refused = detail(post(http, [("me", "pronoun"), ("Us", label)], path))
        assert refused.startswith(f"support[1].label: expected '{other}' as in the adapter, which is the same for the base model (")
    assert "sees at least one token" in detail(post(http, [("\u200b", "pronoun")], path))
    assert post(http, [("me", "pronoun"), ("US", "country")], path).status_code == 202  # one that the adapter has already


CLASHES: list[Pairs] = [
    [("US", "country"), ("us", "pronoun")],
    [("😀", "joy"), ("😡", "anger"), ("fine", "joy")],
    [("\u200b", "a"), ("\u00ad", "b"), ("hello there", "a"), ("good bye", "b")],
]


@pytest.mark.parametrize("pairs", CLASHES)
def test_what_is_on_record_is_not_refused(minilm: Base, redis_server: RedisServer, http: httpx.Client, pairs: Pairs) -> None:
    assert post(http, pairs).status_code == 422
    identity = put_on_record(minilm, redis_server, pairs)
    again = post(http, pairs)
    assert again.status_code == 202 and again.json()["adapter_id"] == identity
    assert any("which has another label" in message for _, message in warnings(again))
    dry = http.post("/adapt", params={"dry_run": "true"}, json=body(pairs))
    assert dry.json()["status"] == "queued" and warnings(dry) == warnings(again)
    grown = post(http, [("something else", pairs[0][1])], f"/adapters/{identity}/examples")
    assert grown.status_code == 202 and http.get(f"/adapters/{grown.json()['adapter_id']}").json()["examples"] == len(pairs) + 1
    with redis.Redis.from_url(redis_server.url) as client:
        client.hset(f"qs:default:adapter:{identity}", mapping={"status": "ready", "expires_at": 1})  # it has expired
    assert http.get(f"/adapters/{identity}").json()["status"] == "expired"
    assert post(http, pairs).status_code == 202
    assert http.delete(f"/adapters/{identity}").status_code == 204
    assert post(http, pairs).status_code == 422  # it would be a new adapter


def test_a_request_that_was_accepted_with_its_idempotency_key_may_be_repeated(
    minilm: Base, redis_server: RedisServer, http: httpx.Client
) -> None:
    key = {"Idempotency-Key": "once"}
    identity = put_on_record(minilm, redis_server, CLASHES[0])
    assert post(http, CLASHES[0], headers=key).json()["adapter_id"] == identity
    http.delete(f"/adapters/{identity}")
    assert post(http, CLASHES[0]).status_code == 422
    assert post(http, CLASHES[1], headers=key).status_code == 422
    repeated = post(http, CLASHES[0], headers=key)
    assert repeated.status_code == 202 and repeated.json()["adapter_id"] == identity and warnings(repeated)


def test_label_words_are_compared_as_the_model_sees_them(minilm: Base, redis_server: RedisServer, http: httpx.Client) -> None:
    cases = [
        ([*FINE, ("thanks", "Greeting")], "the words of 'greeting' and the words of 'Greeting' are the same for it"),
        (
            [*FINE, ("Farewell!", "greeting"), ("FAREWELL", "greeting")],
            "the words of 'farewell' and support[5] are the same for it",
        ),
        ([*FINE, ("ha", "😀"), ("no", "😡")], "'😀'"),
    ]
    for pairs, expected in cases:
        assert post(http, pairs).status_code == 202
        refused = detail(post(http, pairs, label_words=True))
        assert refused.startswith("options.label_words: expected label") and expected in refused, refused
    parent = put_on_record(minilm, redis_server, cases[0][0], label_words=True)
    assert post(http, cases[0][0], label_words=True).json()["adapter_id"] == parent
    path = f"/adapters/{parent}/examples"
    answer = http.post(path, json={"support": [{"input": "hello", "label": "greeting"}]})  # its options are the parent's
    assert answer.status_code == 202, answer.text
    other = http.post(path, json={"support": [{"input": "hello", "label": "FAREWELL"}]})
    assert "the words of 'FAREWELL' and the words of 'farewell'" in detail(other)


@pytest.mark.parametrize(
    "labels",
    [
        ("Yes", "yes"),
        ("yes", " yes"),
        ("card lost", "card  lost"),
        ("é", "e\u0301"),
        ("ＡＢＣ", "abc"),
        ("a\u200bb", "ab"),
        ("it’s", "it's"),
    ],
)
def test_labels_that_look_alike_give_a_warning(http: httpx.Client, labels: tuple[str, str]) -> None:
    first, second = labels
    pairs = [
        ("good morning", first),
        ("hello there", first),
        ("see you", second),
        ("good bye", second),
        ("well", "other"),
        ("no", "other"),
    ]
    ((field, message),) = warnings(post(http, pairs))
    assert field == "support" and message.startswith("the labels ") and "differ only in case, spaces" in message
    assert repr(first) in message and repr(second) in message


@pytest.mark.parametrize("labels", [("résumé", "resume"), ("C++", "C#"), ("-1", "1"), ("कि", "की"), ("👍", "👎"), ("10²", "102")])
def test_different_labels_give_no_warning(http: httpx.Client, labels: tuple[str, str]) -> None:
    first, second = labels
    assert warnings(post(http, [("good morning", first), ("hello there", first), ("see you", second), ("good bye", second)])) == []


def test_unknown_tokens_give_a_warning_for_the_set_and_for_texts(http: httpx.Client) -> None:
    mixed = [("good morning everybody 😀", "greeting"), ("你好 吗", "greeting"), *FINE]
    assert warnings(post(http, mixed)) == [("support[1].input", "unknown to the base model: 3 of 3 tokens")]
    chinese = [
        ("我的包裹在哪里", "delivery"),
        ("快递什么时候到", "delivery"),
        ("我忘记了密码", "login"),
        ("我的账户被锁定了", "login"),
    ]
    (whole, message), *single = warnings(post(http, chinese))
    assert whole == "support" and message.endswith("choose a base model that knows these words or characters")
    assert "tokens are unknown to the base model" in message and [field for field, _ in single] == [
        f"support[{i}].input" for i in range(4)
    ]


def test_a_warning_is_short_whatever_the_labels_are(http: httpx.Client) -> None:
    alike = [(f"text {i}", "x" + "\u200b" * (60 + i)) for i in range(4)]
    for pairs in (
        alike,
        [(text, " " * i + "'\\" * 90) for i, (text, _) in enumerate(alike)],
        [(text, "ß" * 190 + " " * i) for i, (text, _) in enumerate(alike)],
    ):
        found = warnings(post(http, [*FINE, *pairs]))
        assert any("differ only in case" in message for _, message in found)
        assert max(len(message) for _, message in found) <= 300


def test_warnings_are_bounded_however_many_examples_there_are(http: httpx.Client) -> None:
    pairs = [("word " * 300 + str(i), f"{'label' * 38} {i}") for i in range(700)]
    pairs = [(f"{i} {text}", label) for i, (text, label) in enumerate(pairs)]
    pairs += [("😀 😀", "emoji")] * 400 + [(f"😀 {'😀' * (i + 2)}", "emoji") for i in range(400)]
    pairs += [(f"text {i} a", f"{i:03} x") for i in range(100)] + [(f"text {i} b", f"{i:03}  X") for i in range(100)]
    answer = http.post("/adapt", params={"dry_run": "true"}, json=body(pairs), timeout=60)
    found = warnings(answer)
    assert len(found) <= 8 * (MOST_OF_A_SORT + 1) and max(len(message) for _, message in found) < 300
    more = [message for _, message in found if message.startswith("and ")]
    assert more == [
        f"and {700 + 200 - MOST_OF_A_SORT} more: labels with one example",
        f"and {100 - MOST_OF_A_SORT} more: groups of labels that look alike",
        f"and {400 - MOST_OF_A_SORT} more: examples that are the same for the base model as others",
        f"and {800 - MOST_OF_A_SORT} more: texts of mostly unknown tokens",
        f"and {399 - MOST_OF_A_SORT} more: examples that are repeated",
        f"and {700 - MOST_OF_A_SORT} more: examples that are cut to 256 tokens",
    ]
    assert len(answer.json()["truncated"]) == 700 and "word word" not in str(found)
