"""API calls as values: the request to send, how to read its answer, and whether it may be retried."""

import dataclasses
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

import httpx

from quickstudy.answers import (
    Adaptation,
    Adapter,
    AdapterPage,
    AliasDetail,
    AliasMove,
    AliasPage,
    AuditPage,
    DryRun,
    Initialization,
    InitializationList,
    Predictions,
    Score,
    Status,
    Usage,
    read_as,
)
from quickstudy.errors import NotUnderstood
from quickstudy.examples import Examples, examples_as_json, inputs_as_json, option_as_json, tags_as_json

T = TypeVar("T")
AdapterRef = str | Adaptation | Adapter
"""An adapter id or an object with an `adapter_id`. In `predict`, also an alias."""


class LearnOptions(TypedDict, total=False):
    """Options of a new adapter. For an option that is not given, the service's default applies.

    In `add_examples`, `seed`, `label_words` and `steps` default to the parent's values. But if the parent has the number of steps
    that the initialization chooses for the parent's examples, the initialization chooses again for the larger support set.
    """

    steps: int | None
    """Number of inner steps, 0 to 100; None: the initialization's own number."""
    seed: int
    """Seed for the order of minibatches of a large support set."""
    label_words: bool | Literal["auto"]
    """Use the words of each label as one more example of the label, such as `card lost` for `card_lost`. `auto`, the default: only
    if a test on the examples shows that the words describe them."""
    ttl_seconds: int | None
    """Seconds until the adapter expires; None: the service's default."""
    name: str | None
    """A name to show in lists. It has no influence on the adapter's id."""
    tags: Sequence[str]
    """Tags to filter by. They have no influence on the adapter's id."""


class AdaptOptions(LearnOptions, total=False):
    """Options of `adapt`."""

    initialization: str
    """Name of the initialization to adapt from."""
    base_model: str
    """One of the service's base models. If not given, the first one that has the initialization is used."""


class AdapterFilters(TypedDict, total=False):
    """Filters of `adapters`. A filter that is None has no effect."""

    status: Status | None
    tag: str | None
    name: str | None


class Changes(TypedDict, total=False):
    """Changes to an adapter. `name=None` removes the name; `tags` replaces all tags."""

    name: str | None
    tags: Sequence[str]


class AliasCondition(TypedDict, total=False):
    """A condition of `set_alias`, so that two concurrent writers do not overwrite each other's change."""

    expected: AdapterRef | None
    """The adapter that the alias must point at before the call; None: the alias must not exist yet."""


class InvalidName(ValueError):
    """A string that can name neither an adapter nor an alias."""

    def __init__(self) -> None:
        super().__init__("expected an adapter's id or an alias, got an empty string, '.' or '..'")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One HTTP request to the service, and the function `read` that converts the JSON of its answer."""

    method: str
    path: str
    read: Callable[[Any], T]
    json: dict[str, Any] | None = None
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    wait_seconds: float = 0.0
    """Seconds that the request asks the service to wait before it answers. They are added to the timeout."""
    repeatable: bool = True
    """True if the call may be sent again after its answer was lost, even though the first attempt may have taken effect."""
    is_deletion: bool = False
    """True for a deletion: if its answer was lost, a 404 on the retry means that it succeeded."""

    def answer(self, response: httpx.Response) -> T:
        """Read a successful response. Raises NotUnderstood if it is not JSON of the expected form."""
        try:
            content = response.json() if response.content else None
        except ValueError:
            raise NotUnderstood(response.status_code, {"detail": f"{self.method} {self.path}: the answer is not JSON"}) from None
        return self.read(content)


def adapt(support: Examples, options: AdaptOptions, wait: float = 0.0) -> Call[Adaptation]:
    return _learn("/adapt", support, options, wait)


def add_examples(parent: AdapterRef, support: Examples, options: LearnOptions, wait: float = 0.0) -> Call[Adaptation]:
    return _learn(f"/adapters/{_segment(parent)}/examples", support, options, wait)


def dry_run(support: Examples, options: AdaptOptions) -> Call[DryRun]:
    body = _body(support, options)
    return Call("POST", "/adapt", _as(DryRun), json=body, params={"dry_run": "true"})


def predict(name: AdapterRef, inputs: Sequence[str], top_k: int | None) -> Call[Predictions]:
    body: dict[str, Any] = {"adapter_id": option_as_json(name_of(name), "adapter_id"), "inputs": inputs_as_json(inputs, "inputs")}
    if top_k is not None:
        body["top_k"] = option_as_json(top_k, "top_k")
    return Call("POST", "/predict", _as(Predictions), json=body)


def score(name: AdapterRef, examples: Examples) -> Call[Score]:
    return Call("POST", f"/adapters/{_segment(name)}/score", _as(Score), json={"examples": examples_as_json(examples, "examples")})


def adapter(name: AdapterRef) -> Call[Adapter]:
    return Call("GET", f"/adapters/{_segment(name)}", _as(Adapter))


def events(name: AdapterRef) -> Call[None]:
    return Call("GET", f"/adapters/{_segment(name)}/events", _nothing, headers={"Accept": "text/event-stream"})


def adapters(filters: AdapterFilters, cursor: str | None) -> Call[AdapterPage]:
    chosen = {name: str(option_as_json(value, name)) for name, value in filters.items() if value is not None}
    return Call("GET", "/adapters", _as(AdapterPage), params={**chosen, **_page(cursor)})


def update(name: AdapterRef, changes: Changes) -> Call[Adapter]:
    body = {field: _option(field, value) for field, value in changes.items()}
    return Call("PATCH", f"/adapters/{_segment(name)}", _as(Adapter), json=body)


def delete(name: AdapterRef) -> Call[None]:
    return Call("DELETE", f"/adapters/{_segment(name)}", _nothing, is_deletion=True)


def pin(name: AdapterRef, method: Literal["PUT", "DELETE"]) -> Call[None]:
    return Call(method, f"/adapters/{_segment(name)}/pin", _nothing)


def aliases(cursor: str | None) -> Call[AliasPage]:
    return Call("GET", "/aliases", _as(AliasPage), params=_page(cursor))


def alias(name: str) -> Call[AliasDetail]:
    return Call("GET", f"/aliases/{_segment(name)}", _as(AliasDetail))


def roll_back_alias(name: str) -> Call[AliasMove]:
    # A retry would go back one adapter further if the answer to the first attempt was lost.
    return Call("POST", f"/aliases/{_segment(name)}/rollback", _as(AliasMove), repeatable=False)


def set_alias(alias: str, name: AdapterRef, condition: AliasCondition) -> Call[AliasMove]:
    body: dict[str, Any] = {"adapter_id": option_as_json(name_of(name), "adapter_id")}
    if "expected" in condition:
        body["expected"] = None if (expected := condition["expected"]) is None else option_as_json(name_of(expected), "expected")
    # With a condition, a retry could be refused because the first attempt has already moved the alias.
    return Call("PUT", f"/aliases/{_segment(alias)}", _as(AliasMove), json=body, repeatable=not condition)


def delete_alias(alias: str) -> Call[None]:
    return Call("DELETE", f"/aliases/{_segment(alias)}", _nothing, is_deletion=True)


def initializations() -> Call[tuple[Initialization, ...]]:
    return Call("GET", "/initializations", lambda content: read_as(InitializationList, content).initializations)


def usage(tenant: str | None) -> Call[Usage]:
    return Call("GET", "/usage", _as(Usage), params={} if tenant is None else {"tenant": option_as_json(tenant, "tenant")})


def audit(action: str | None, cursor: str | None) -> Call[AuditPage]:
    chosen = {} if action is None else {"action": option_as_json(action, "action")}
    return Call("GET", "/audit", _as(AuditPage), params={**chosen, **_page(cursor)})


def ready() -> Call[None]:
    return Call("GET", "/readyz", _nothing)


def name_of(name: AdapterRef) -> str:
    """Return the adapter id, or the alias, as a string."""
    return name if isinstance(name, str) else name.adapter_id


def _learn(path: str, support: Examples, options: LearnOptions, wait: float) -> Call[Adaptation]:
    # All attempts send the same key. If an answer is lost, the retry gets the same answer and starts no second job.
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    if wait > 0:
        headers["Prefer"] = f"wait={wait:g}"
    return Call("POST", path, _as(Adaptation), json=_body(support, options), headers=headers, wait_seconds=max(0.0, wait))


def _body(support: Examples, options: LearnOptions) -> dict[str, Any]:
    body: dict[str, Any] = {"support": examples_as_json(support, "support")}
    for name, value in options.items():
        if name in ("steps", "seed", "label_words"):
            body.setdefault("options", {})[name] = option_as_json(value, f"options.{name}")
        elif value is not None:
            body[name] = _option(name, value)
    return body


def _option(name: str, value: Any) -> Any:
    return tags_as_json(value) if name == "tags" else option_as_json(value, name)


def _page(cursor: str | None) -> dict[str, str | int]:
    return {"limit": 200} if cursor is None else {"limit": 200, "cursor": cursor}


def _segment(name: AdapterRef) -> str:
    """Quote an adapter id or alias as one segment of a URL path.

    Raises InvalidName for an empty string, `.` and `..`, which would change the path, and Invalid for what is not Unicode.
    """
    segment = option_as_json(name_of(name), "name")
    if segment in ("", ".", ".."):
        raise InvalidName
    return quote(segment, safe="")


def _as(kind: type[T]) -> Callable[[Any], T]:
    assert dataclasses.is_dataclass(kind)
    return lambda content: read_as(kind, content)


def _nothing(_content: Any) -> None:
    return None
