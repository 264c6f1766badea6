"""What the service answers, as frozen values; and how JSON becomes them: strictly in what they have, blind to the rest."""

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
class Adaptation:
    """An accepted request for an adapter."""

    adapter_id: str
    status: Status
    truncated: tuple[int, ...]
    """Positions of examples that were cut to the base model's maximum length."""


@dataclass(frozen=True)
class Notice:
    """What is allowed, and maybe not meant."""

    field: str
    message: str

    @property
    def row(self) -> int | None:
        """The position of the example that is meant, where it is one."""
        return row_of(self.field)


@dataclass(frozen=True)
class DryRun:
    """What a request for an adapter would do."""

    adapter_id: str
    status: Status | Literal["new"]
    examples: int
    labels: dict[str, int]
    """Examples of each label."""
    steps: int | None
    """None where the support set decides."""
    truncated: tuple[int, ...]
    warnings: tuple[Notice, ...]


@dataclass(frozen=True)
class Adapter:
    """An adapter's state. Times are Unix times in seconds."""

    adapter_id: str
    status: Status
    initialization: str
    initialization_digest: str
    labels: tuple[str, ...]
    examples: int
    steps: int | None
    """None where the support set decides, until the adapter is ready."""
    seed: int
    label_words: bool
    precision: str
    attempt: int
    support_loss: tuple[float, ...]
    """Before each inner step."""
    truncated: tuple[int, ...]
    timings: dict[str, float]
    """Milliseconds by stage."""
    digest: str | None
    error: str | None
    last_error: str | None
    """Of an unfinished job: why its last attempt was not the end of it."""
    pinned: bool
    recovery_ms: int | None
    created_at: float
    expires_at: float | None
    """None: pinned."""
    name: str | None = None
    tags: tuple[str, ...] = ()
    parent: str | None = None
    """The adapter whose examples this one has too."""


@dataclass(frozen=True)
class Prediction:
    label: str
    probabilities: dict[str, float]
    """Of every label, or of the `top_k` most probable ones, the most probable first."""

    @property
    def probability(self) -> float:
        """Of `label`."""
        return self.probabilities[self.label]


@dataclass(frozen=True)
class Predictions(Sequence[Prediction]):
    """A sequence: one prediction for each input, in their order."""

    adapter_id: str
    digest: str
    """Of the weights."""
    predictions: tuple[Prediction, ...]
    truncated: tuple[int, ...]
    """Positions of inputs that were cut to the base model's maximum length."""
    alias: str | None = None
    """The alias that was asked for."""

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
    precision: float
    recall: float
    f1: float
    examples: int


@dataclass(frozen=True)
class Score:
    """How well an adapter predicts labelled examples."""

    adapter_id: str
    digest: str
    examples: int
    accuracy: float
    macro_f1: float
    labels: dict[str, LabelScore]
    confusion: dict[str, dict[str, int]]
    """True label → predicted label → examples."""
    mistakes: tuple[int, ...]
    """Positions of the examples that are predicted wrong."""


@dataclass(frozen=True)
class Alias:
    alias: str
    adapter_id: str
    updated_at: float
    """Unix time in seconds."""


@dataclass(frozen=True)
class AliasMove:
    alias: str
    adapter_id: str
    previous: str | None
    """The adapter that it pointed to before."""


@dataclass(frozen=True)
class Initialization:
    """What a deployment can adapt from."""

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
    """`objective` of a support set of `more_than` examples, of which at most `most` parts are given `steps` each."""
    temperature: float
    max_length: int


@dataclass(frozen=True)
class Usage:
    """What a tenant has used, next to its limits (0: none)."""

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


@dataclass(frozen=True)
class Readiness:
    """Whether the service takes traffic, and what it has not that it needs, as far as it says; true or false as such."""

    ready: bool
    missing: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.ready


@dataclass(frozen=True)
class AdapterPage:
    adapters: tuple[Adapter, ...]
    next_cursor: str | None


@dataclass(frozen=True)
class AliasPage:
    aliases: tuple[Alias, ...]
    next_cursor: str | None


@dataclass(frozen=True)
class InitializationList:
    initializations: tuple[Initialization, ...]


def read_as(kind: type[T], content: object) -> T:
    """JSON → an instance of one of the classes above.

    Keys that the class has not are left alone, so that a newer service may say more. Raises NotUnderstood, which names the place,
    for a value that is missing or of another type.
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
        return value  # a later service may have others
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
