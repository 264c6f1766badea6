"""Send twelve fixed requests to a service over plain HTTP and record its answers exactly.

Adapter ids depend on a secret key in the data folder, so two services give the same ids only if their data folders are copies of
one folder. `make_secret_folder` creates a folder with only that key, so that a service must compute all of its answers itself.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import redis

from tests.upgrade.services import storage

Pairs = list[tuple[str, str]]
Answers = dict[str, dict[str, Any]]
_OPENERS = ("please", "could you", "i want to", "how do i", "hello, i need to", "is it possible to")
_BODIES = {
    "book_table": (
        "book a table for two",
        "reserve a seat by the window",
        "get a table tonight",
        "have dinner at eight",
        "dine with six",
    ),
    "cancel_order": (
        "cancel my order",
        "stop the delivery",
        "call off the purchase",
        "return the parcel unopened",
        "undo the order",
    ),
    "reset_password": ("reset my password", "log in again", "unlock my account", "change my login", "recover the account"),
    "track_parcel": (
        "find my parcel",
        "see where the delivery is",
        "track the shipment",
        "learn when it arrives",
        "follow the van",
    ),
    "pay_invoice": ("pay the invoice", "settle the bill by card", "transfer the money", "see what i owe", "get a receipt"),
}
INPUTS = (
    "a table for four, please",
    "where is my package?",
    "I forgot the password to my account",
    "please cancel everything that I have ordered",
    "Wie bezahle ich die Rechnung? 💳",
    "!",
    "words " * 400,
)
_SECRET = "5eed" * 16  # an arbitrary value


def make_secret_folder(data: Path) -> None:
    """Create a data folder that contains only the secret key for computing adapter ids."""
    with storage(data) as url, redis.Redis.from_url(url) as client:
        client.set("qs:id-key", _SECRET)


def record(url: str, key: str = "") -> Answers:
    """Send all requests, one after another. Return {request name: the service's answers}."""
    answers: Answers = {}
    with client(url, key) as http:
        for name, path, body in _requests():
            if path != "/adapt":
                path = f"/adapters/{answers[path]['adapter_id']}/examples"
            answers[name] = {**adapt(http, path, body), "warnings": _dry_run_warnings(http, path, body)}
            answers[name] |= describe(http, answers[name]["adapter_id"])
    return answers


def record_again(url: str, key: str = "") -> tuple[Answers, Answers]:
    """Record the answers twice: with the data folder as it is, and after deleting the adapters."""
    kept = record(url, key)
    with client(url, key) as http:
        for answers in kept.values():
            http.delete(f"/adapters/{answers['adapter_id']}").raise_for_status()
    return kept, record(url, key)


def client(url: str, key: str = "") -> httpx.Client:
    """Return an HTTP client for the service at `url`."""
    return httpx.Client(base_url=url, timeout=120, headers={"Authorization": f"Bearer {key}"} if key else {})


def adapt(http: httpx.Client, path: str, body: Mapping[str, Any], seconds: int = 60) -> dict[str, Any]:
    """Post a request, wait until its adapter is ready, and return the response body."""
    answer = http.post(path, json=without_label_words(body), headers={"Prefer": f"wait={seconds}"})
    assert answer.status_code == 200, (path, answer.status_code, answer.text)
    content: dict[str, Any] = answer.json()
    assert content["status"] == "ready", content
    return content


def without_label_words(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a request with no label words, which was the default of released commits."""
    return {**body, "options": {"label_words": False, **body.get("options", {})}}


def describe(http: httpx.Client, adapter: str) -> dict[str, Any]:
    """Return what the API shows of a ready adapter, and its predictions, without times and durations."""
    view = http.get(f"/adapters/{adapter}").raise_for_status().json()
    varying = ("timings", "created_at", "expires_at", "recovery_ms")
    return {**{name: value for name, value in view.items() if name not in varying}, "predictions": predict(http, adapter)}


def predict(http: httpx.Client, adapter: str) -> Any:
    """Return the predictions for the fixed inputs. Wait if an evicted adapter must be recomputed."""
    for _ in range(60):
        answer = http.post("/predict", json={"adapter_id": adapter, "inputs": list(INPUTS)})
        if answer.status_code != 503:
            break
        time.sleep(1)
    assert answer.status_code == 200, (answer.status_code, answer.text)
    return answer.json()


def examples(shots: Mapping[str, int], *, first: int = 0) -> list[dict[str, str]]:
    """Return `shots[label]` examples for each label, beginning with example number `first`."""
    rows = []
    for label, number in shots.items():
        bodies = _BODIES[label]
        for i in range(first, first + number):
            rows.append({"input": f"{_OPENERS[i // len(bodies) % len(_OPENERS)]} {bodies[i % len(bodies)]}", "label": label})
    return rows


def _even(shots: int, labels: int = 3) -> dict[str, int]:
    return dict.fromkeys(list(_BODIES)[:labels], shots)


def _mislabelled(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the examples with mixed-up labels: a hard support set, which takes more steps."""
    labels = [row["label"] for row in rows]
    return [{**row, "label": labels[(i * 7) % len(rows)]} for i, row in enumerate(rows)]


def _requests() -> list[tuple[str, str, dict[str, Any]]]:
    """Return (name, path, body) for each request.

    If the path is the name of an earlier request, the examples are added to the adapter of that request.
    """
    unequal = {"book_table": 10, "cancel_order": 7, "reset_password": 12, "track_parcel": 11}
    many = {label: 27 + number for number, label in enumerate(_BODIES)}
    unicode = [
        {"input": "Où est mon colis ? 📦", "label": "colis – où"},
        {"input": "包裹在哪里", "label": "colis – où"},
        {"input": "Ich möchte bezahlen", "label": "Zahlung €"},
        {"input": "e\u0301te\u0301 naïve İstanbul", "label": "Zahlung €"},
        {"input": "very " * 300 + "long", "label": "长"},
        {"input": "tab\tand\nnewline", "label": "长"},
    ]
    return [
        ("1-shot", "/adapt", {"support": examples(_even(1))}),
        ("2-shot", "/adapt", {"support": examples(_even(2)), "name": "two", "tags": ["a", "b"]}),
        ("5-shot", "/adapt", {"support": examples(_even(5, 5))}),
        ("10-shot, unequal", "/adapt", {"support": examples(unequal)}),
        ("label words", "/adapt", {"support": examples(_even(1)), "options": {"label_words": True}}),
        ("hard", "/adapt", {"support": _mislabelled(examples(_even(6)))}),
        ("steps and seed", "/adapt", {"support": examples(_even(5)), "options": {"steps": 3, "seed": 7}}),
        ("in parts", "/adapt", {"support": examples(many), "options": {"seed": 5}}),
        ("frozen-prototypes", "/adapt", {"support": examples(_even(2)), "initialization": "frozen-prototypes"}),
        ("lora-from-zero", "/adapt", {"support": examples(_even(3)), "initialization": "lora-from-zero"}),
        ("unicode", "/adapt", {"support": unicode}),
        ("more examples", "2-shot", {"support": examples(_even(2, 4), first=2), "options": {"seed": 1}}),
    ]


def _dry_run_warnings(http: httpx.Client, path: str, body: Mapping[str, Any]) -> Any:
    plain = without_label_words({key: value for key, value in body.items() if key not in ("name", "tags")})
    answer = http.post(path, params={"dry_run": "true"}, json=plain)
    warnings = answer.raise_for_status().json()["warnings"]
    return [warned for warned in warnings if "base model" not in warned["message"]]  # released commits had no warnings about tokens
