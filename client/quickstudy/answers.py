"""The service's answers as frozen dataclasses, and the function `read_as`, which parses answers.

`read_as` builds a dataclass from JSON. It checks every field, and ignores JSON members for which the dataclass has no field.
"""

import dataclasses
import functools
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints, overload

from quickstudy.errors import NotUnderstood, row_of

T = TypeVar("T")
Status = Literal["queued", "running", "ready", "failed", "evicted", "expired"]
IN_FLIGHT: tuple[Status, ...] = ("queued", "running")


@dataclass(frozen=True)
class Notice:
    """A warning about examples that are allowed, but may contain a mistake."""

    field: str
    message: str

    @property
    def row(self) -> int | None:
        """The position of the example that the warning is about; None if there is no single example."""
        return row_of(self.field)


@dataclass(frozen=True)
class Adaptation:
    """The result of `adapt` or `add_examples`: the adapter's id, and its status when the call returned."""

    adapter_id: str
    status: Status
    truncated: tuple[int, ...]
    """Positions of examples that were cut to the base model's maximum length."""
    warnings: tuple[Notice, ...] = ()
    """Warnings about the examples. A service of an earlier version sends none."""


@dataclass(frozen=True)
class DryRun:
    """The result of `dry_run`: the adapter that `adapt` would create or return.

    `status` is `new` if the adapter does not exist yet.
    """

    adapter_id: str
    status: Status | Literal["new"]
    examples: int
    labels: dict[str, int]
    """Number of examples of each label."""
    steps: int | None
    """Number of inner steps; None if the inner loop will choose the number, by accuracy on the support set."""
    truncated: tuple[int, ...]
    warnings: tuple[Notice, ...]


@dataclass(frozen=True)
class Adapter:
    """The state of an adapter. Times are Unix times in seconds."""

    adapter_id: str
    status: Status
    initialization: str
    initialization_digest: str
    labels: tuple[str, ...]
    examples: int
    steps: int | None
    """Number of inner steps; None if the inner loop chooses the number and the adapter is not ready yet."""
    seed: int
    label_words: bool | Literal["auto"]
    """The requested setting."""
    precision: str
    attempt: int
    support_loss: tuple[float, ...]
    """The loss on the support set before each inner step."""
    truncated: tuple[int, ...]
    """Positions of examples that were cut to the base model's maximum length."""
    timings: dict[str, float]
    """Duration in milliseconds of each stage: queue, tokenize, inner_loop, store."""
    digest: str | None
    """The sha256 of the weights; None until they are stored."""
    error: str | None
    """The reason why the job failed; None if it did not fail."""
    last_error: str | None
    """The reason why the last attempt of an unfinished job failed."""
    pinned: bool
    recovery_ms: int | None
    """Milliseconds from the last sign of life of a lost worker to the end of the job; None if no worker was lost."""
    created_at: float
    expires_at: float | None
    """None if the adapter is pinned."""
    name: str | None = None
    tags: tuple[str, ...] = ()
    parent: str | None = None
    """The adapter whose examples this one includes; None if it has no parent."""
    base_model: str | None = None
    """None if the service does not have the adapter's base model any more."""
    kind: str | None = None
    """The kind of task, such as `text-classification`; None from a service of an earlier version."""
    label_words_used: bool | None = None
    """Whether each label's own words are one more example of it; None until the setting `auto` has decided."""
    label_words_gain: float | None = None
    """Of `auto`: how much better than guessing the words alone predict the examples' labels, in nats per example.

    They are used if it is above 0.05. None if they cannot be examples, or if there are ten examples of a label already.
    """


@dataclass(frozen=True)
class Prediction:
    """The predicted label of one input, with probabilities."""

    label: str
    """The most probable label."""
    probabilities: dict[str, float]
    """{label: probability} of all labels, or of the `top_k` most probable labels; the most probable label is first."""

    @property
    def probability(self) -> float:
        """The probability of `label`."""
        return self.probabilities[self.label]


@dataclass(frozen=True)
class Predictions(Sequence[Prediction]):
    """A sequence with one prediction for each input, in the order of the inputs."""

    adapter_id: str
    digest: str
    """The sha256 of the adapter's weights."""
    predictions: tuple[Prediction, ...]
    truncated: tuple[int, ...]
    """Positions of inputs that were cut to the base model's maximum length."""
    alias: str | None = None
    """The alias that was passed to `predict`; None if an adapter id was passed."""

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Prediction, ...]: ...
    def __getitem__(self, index: int | slice) -> Prediction | tuple[Prediction, ...]:
        return self.predictions[index]

    def __len__(self) -> int:
        return len(self.predictions)

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self.predictions)


@dataclass(frozen=True)
class LabelScore:
    """The scores of one label."""

    precision: float
    """0 if the label was never predicted."""
    recall: float
    """0 if no example has the label."""
    f1: float
    examples: int


@dataclass(frozen=True)
class Score:
    """The scores of an adapter's predictions on labelled examples. All rates are from 0 to 1."""

    adapter_id: str
    digest: str
    """The sha256 of the adapter's weights."""
    examples: int
    accuracy: float
    macro_f1: float
    """The mean F1 of `labels`."""
    labels: dict[str, LabelScore]
    """The scores of every label that occurs among the true labels or the predictions."""
    confusion: dict[str, dict[str, int]]
    """Numbers of examples: `confusion[true label][predicted label]`."""
    mistakes: tuple[int, ...]
    """Positions of the examples with a wrong prediction."""


@dataclass(frozen=True)
class Alias:
    """A name that points at an adapter."""

    alias: str
    adapter_id: str
    updated_at: float
    """Unix time in seconds."""


@dataclass(frozen=True)
class AliasEntry:
    """An adapter that an alias pointed at before."""

    adapter_id: str
    since: float
    """When the alias began to point at it, as a Unix time in seconds."""


@dataclass(frozen=True)
class AliasDetail:
    """An alias with its history."""

    alias: str
    adapter_id: str
    updated_at: float
    """When the alias was last moved, as a Unix time in seconds."""
    history: tuple[AliasEntry, ...] = ()
    """Where the alias pointed before, the latest first; at most 20 entries."""


@dataclass(frozen=True)
class AliasMove:
    """The result of pointing an alias at an adapter."""

    alias: str
    adapter_id: str
    previous: str | None
    """The adapter that the alias pointed at before; None if the alias is new."""


@dataclass(frozen=True)
class Actor:
    """The author of a change. `kind` is `key`, `no key`, `command line` or `process`.

    `id`: the id of the API key, or the name of the operating system's user. `address`: where the request came from.
    """

    kind: str
    id: str | None
    address: str | None


@dataclass(frozen=True)
class AuditEntry:
    """A change of a tenant's keys, adapters, aliases or limits.

    `action` says what was done, such as `alias.moved`, and `subject` to which key, adapter or alias.
    """

    id: str
    time: float
    """When the change was made, as a Unix time in seconds."""
    action: str
    subject: str
    actor: Actor
    request_id: str | None
    """The id of the request that made the change; None if no request did."""
    details: dict[str, object]
    """Further values, such as the adapter that an alias pointed at before."""


@dataclass(frozen=True)
class Initialization:
    """An initialization of the service: a starting point that support sets are adapted from."""

    name: str
    digest: str
    base_model: str
    delta: dict[str, object]
    algorithm: str
    steps: int
    steps_by_shots: dict[int, int]
    hard_steps: dict[str, float] | None
    optimizer: str
    objective: dict[str, float]
    in_parts: dict[str, object] | None
    """The settings for large support sets; None if the initialization has no such settings.

    A support set of more than `more_than` examples is split into parts, and the inner loop uses `objective` for it. The usual
    number of steps is multiplied by the number of parts, but at most by `most`.
    """
    temperature: float
    max_length: int


@dataclass(frozen=True)
class Usage:
    """A tenant's usage and limits. `limits`: {name of the setting: its value, 0 for no limit}.

    `streams` and `bodies_bytes` are those of the process that answered; 0 from a service of an earlier version.
    """

    tenant: str
    adapters: int
    bytes: int
    jobs: int
    requests_this_minute: int
    adaptations: int
    predictions: int
    limits: dict[str, int]
    example_bytes: int = 0
    aliases: int = 0
    streams: int = 0
    bodies_bytes: int = 0


@dataclass(frozen=True)
class Readiness:
    """The result of `ready`. In an `if` condition, it is true if the service accepts traffic."""

    ready: bool
    missing: tuple[str, ...] = ()
    """The parts of the service that are missing; empty if the service is ready, or does not say what is missing."""

    def __bool__(self) -> bool:
        return self.ready


@dataclass(frozen=True)
class AdapterPage:
    """One page of a list of adapters; `next_cursor` is None on the last page."""

    adapters: tuple[Adapter, ...]
    next_cursor: str | None


@dataclass(frozen=True)
class AliasPage:
    """One page of a list of aliases; `next_cursor` is None on the last page."""

    aliases: tuple[Alias, ...]
    next_cursor: str | None


@dataclass(frozen=True)
class AuditPage:
    """One page of the audit log; `next_cursor` is None on the last page."""

    entries: tuple[AuditEntry, ...]
    next_cursor: str | None


@dataclass(frozen=True)
class InitializationList:
    """All initializations of a service."""

    initializations: tuple[Initialization, ...]


def read_as(kind: type[T], content: object) -> T:
    """Build an instance of `kind`, one of this module's dataclasses, from parsed JSON.

    Members for which the class has no field are ignored, so that a newer service may send more. Raises NotUnderstood, which names
    the field, if a value is missing or has the wrong type.
    """
    return cast(T, _read(kind, content, kind.__name__))


def _read(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is object:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return _read_object(cast(type, kind), value, where)
    if origin in (Union, types.UnionType):
        return _read_either(arguments, value, where)
    if origin is Literal and isinstance(value, str):
        return value  # a newer service may have more values
    if origin is tuple and isinstance(value, list):
        return tuple(_read(arguments[0], entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if origin is dict and isinstance(value, Mapping):
        keys = int if arguments[0] is int else str  # JSON's keys are strings
        return {keys(key): _read(arguments[1], entry, f"{where}.{key}") for key, entry in value.items()}
    if kind is float and type(value) in (int, float):
        return float(value)
    if origin is None and type(value) is kind:
        return value
    expected = kind.__name__ if origin is None else str(kind)
    raise NotUnderstood(None, {"title": "Not understood", "detail": f"{where}: expected {expected}, got {type(value).__name__}"})


def _read_object(kind: type, value: Mapping[str, Any], where: str) -> Any:
    content = {}
    for field in dataclasses.fields(kind):
        if field.name in value or field.default is dataclasses.MISSING:
            content[field.name] = _read(_hints(kind)[field.name], value.get(field.name), f"{where}.{field.name}")
    return kind(**content)


def _read_either(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    failure: NotUnderstood | None = None
    for kind in kinds:
        try:
            return _read(kind, value, where)
        except NotUnderstood as error:
            failure = failure or error
    assert failure is not None
    raise failure


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
