"""Each call of the API as a value: what is sent, how the answer reads, and what a lost answer means."""

import dataclasses
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

import httpx

from quickstudy.answers import (
    Adaptation,
    Adapter,
    AdapterPage,
    AliasMove,
    AliasPage,
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

T = TypeVar("T")
Pairs = Iterable[tuple[str, str]]
Named = str | Adaptation | Adapter
"""An adapter, by its id, by an alias where the service takes one, or as the service answered it."""


class LearnOptions(TypedDict, total=False):
    """What may be said of an adapter beside its examples; the service's own choice, or the parent's, where it is not said."""

    steps: int | None
    seed: int
    label_words: bool
    """Each label's own words are one more example of it."""
    ttl_seconds: int | None
    name: str | None
    tags: Sequence[str]


class AdaptOptions(LearnOptions, total=False):
    initialization: str
    base_model: str
    """One of those that the service has; without it, the first one that has the initialization."""


class AdapterFilters(TypedDict, total=False):
    status: Status | None
    tag: str | None
    name: str | None


class Changes(TypedDict, total=False):
    name: str | None
    tags: Sequence[str]


class AliasCondition(TypedDict, total=False):
    expected: Named | None
    """Where the alias must point just before; None: nowhere."""


class NoName(ValueError):
    """What cannot name an adapter, nor an alias."""

    def __init__(self) -> None:
        super().__init__("expected an adapter's id or an alias, got nothing that can be one")


@dataclass(frozen=True)
class Call(Generic[T]):
    method: str
    path: str
    read: Callable[[Any], T]
    json: dict[str, Any] | None = None
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    waits: float = 0.0
    """Seconds that the service has been asked to take, on top of what any call may take."""
    repeatable: bool = True
    """Whether a second time is as good as the first, should the first one's answer be lost."""
    removes: bool = False
    """Not found, after an answer was lost, then means that it has worked."""

    def answer(self, response: httpx.Response) -> T:
        """What a success says. Raises NotUnderstood."""
        try:
            content = response.json() if response.content else None
        except ValueError:
            raise NotUnderstood(response.status_code, {"detail": f"{self.method} {self.path}: the answer is not JSON"}) from None
        return self.read(content)


def adapt(support: Pairs, options: AdaptOptions, wait: float = 0.0) -> Call[Adaptation]:
    return _learn("/adapt", support, options, wait)


def add_examples(parent: Named, support: Pairs, options: LearnOptions, wait: float = 0.0) -> Call[Adaptation]:
    return _learn(f"/adapters/{_segment(parent)}/examples", support, options, wait)


def dry_run(support: Pairs, options: AdaptOptions) -> Call[DryRun]:
    body = _body(support, options)
    return Call("POST", "/adapt", _as(DryRun), json=body, params={"dry_run": "true"})


def predict(name: Named, inputs: Sequence[str], top_k: int | None) -> Call[Predictions]:
    body: dict[str, Any] = {"adapter_id": name_of(name), "inputs": list(inputs)}
    if top_k is not None:
        body["top_k"] = top_k
    return Call("POST", "/predict", _as(Predictions), json=body)


def score(name: Named, examples: Pairs) -> Call[Score]:
    return Call("POST", f"/adapters/{_segment(name)}/score", _as(Score), json={"examples": _examples(examples)})


def adapter(name: Named) -> Call[Adapter]:
    return Call("GET", f"/adapters/{_segment(name)}", _as(Adapter))


def events(name: Named) -> Call[None]:
    return Call("GET", f"/adapters/{_segment(name)}/events", _nothing, headers={"Accept": "text/event-stream"})


def adapters(filters: AdapterFilters, cursor: str | None) -> Call[AdapterPage]:
    chosen = {name: str(value) for name, value in filters.items() if value is not None}
    return Call("GET", "/adapters", _as(AdapterPage), params={**chosen, **_page(cursor)})


def update(name: Named, changes: Changes) -> Call[Adapter]:
    body: dict[str, Any] = {**changes}
    if "tags" in changes:
        body["tags"] = list(changes["tags"])
    return Call("PATCH", f"/adapters/{_segment(name)}", _as(Adapter), json=body)


def delete(name: Named) -> Call[None]:
    return Call("DELETE", f"/adapters/{_segment(name)}", _nothing, removes=True)


def pin(name: Named, method: Literal["PUT", "DELETE"]) -> Call[None]:
    return Call(method, f"/adapters/{_segment(name)}/pin", _nothing)


def aliases(cursor: str | None) -> Call[AliasPage]:
    return Call("GET", "/aliases", _as(AliasPage), params=_page(cursor))


def set_alias(alias: str, name: Named, condition: AliasCondition) -> Call[AliasMove]:
    body: dict[str, Any] = {"adapter_id": name_of(name)}
    if "expected" in condition:
        body["expected"] = None if condition["expected"] is None else name_of(condition["expected"])
    # With a condition, a second time would be refused for what the first one did.
    return Call("PUT", f"/aliases/{_segment(alias)}", _as(AliasMove), json=body, repeatable=not condition)


def delete_alias(alias: str) -> Call[None]:
    return Call("DELETE", f"/aliases/{_segment(alias)}", _nothing, removes=True)


def initializations() -> Call[tuple[Initialization, ...]]:
    return Call("GET", "/initializations", lambda content: read_as(InitializationList, content).initializations)


def usage(tenant: str | None) -> Call[Usage]:
    return Call("GET", "/usage", _as(Usage), params={} if tenant is None else {"tenant": tenant})


def ready() -> Call[None]:
    return Call("GET", "/readyz", _nothing)


def name_of(name: Named) -> str:
    return name if isinstance(name, str) else name.adapter_id


def _learn(path: str, support: Pairs, options: LearnOptions, wait: float) -> Call[Adaptation]:
    """One key for all attempts: should an answer be lost, the next one gets the same answer, and starts nothing again."""
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    if wait > 0:
        headers["Prefer"] = f"wait={wait:g}"
    return Call("POST", path, _as(Adaptation), json=_body(support, options), headers=headers, waits=max(0.0, wait))


def _body(support: Pairs, options: LearnOptions) -> dict[str, Any]:
    body: dict[str, Any] = {"support": _examples(support)}
    for name, value in options.items():
        if name in ("steps", "seed", "label_words"):
            body.setdefault("options", {})[name] = value
        elif value is not None:
            body[name] = list(options["tags"]) if name == "tags" else value
    return body


def _examples(pairs: Pairs) -> list[dict[str, str]]:
    return [{"input": text, "label": label} for text, label in pairs]


def _page(cursor: str | None) -> dict[str, str | int]:
    return {"limit": 200} if cursor is None else {"limit": 200, "cursor": cursor}


def _segment(name: Named) -> str:
    """One segment of a path. Raises NoName for what would be another path."""
    own = name_of(name)
    if own in ("", ".", ".."):
        raise NoName
    return quote(own, safe="")


def _as(kind: type[T]) -> Callable[[Any], T]:
    assert dataclasses.is_dataclass(kind)
    return lambda content: read_as(kind, content)


def _nothing(_content: Any) -> None:
    return None
