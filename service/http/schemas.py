"""The shapes of HTTP bodies. Limits that are settings are checked in `service.field_checks`, and shown by `openapi`."""

from itertools import islice
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, create_model, model_validator

from worker.ledger.messages import Status


def _whole(value: object) -> object:
    """JSON knows one kind of number: 3.0 is 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# The pattern is told and not checked here: `service/field_checks.py` does, and names the field and what came.
Text = Annotated[str, StringConstraints(strict=True), Field(json_schema_extra={"pattern": r"^[^\x00]*$"})]
# Limits before the validator: after it they would be checked, but not documented.
Count = Annotated[int, Field(strict=True, ge=1), BeforeValidator(_whole)]
Steps = Annotated[int, Field(strict=True, ge=0, le=100), BeforeValidator(_whole)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**31), BeforeValidator(_whole)]
AdapterId = Annotated[
    str,
    StringConstraints(strict=True, max_length=64, pattern=r"^[a-z0-9]+$"),
    Field(examples=["a3f0c1d2e4b5a69788776655443322110ffeeddcc"]),
]
AliasName = Annotated[
    str, StringConstraints(strict=True, pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$"), Field(examples=["support-desk.production"])
]
Name = Annotated[Text, Field(max_length=100, examples=["support desk"], description="what people call it; no part of its id")]
Tag = Annotated[Text, Field(max_length=64, examples=["english"])]
Tags = Annotated[list[Tag], Field(fail_fast=True, max_length=16, description="no part of its id")]

_ID, _DIGEST = "a3f0c1d2e4b5a69788776655443322110ffeeddcc", "9c0d" * 16
SUPPORT_EXAMPLE = [
    {"input": "My card was swallowed by the machine", "label": "card_lost"},
    {"input": "Somebody took my wallet with the card", "label": "card_lost"},
    {"input": "Which currencies can I hold?", "label": "currencies"},
    {"input": "Do you support euros?", "label": "currencies"},
]

TEXT_PATTERN = r"^[^\u0000]*\S[^\u0000]*$"
"""Of a text that is not empty, for the OpenAPI document."""


def example_body(**content: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [content]})


class Body(BaseModel):
    """One error is told, so no more are collected: a body at its limit has room for a million. Hence fail_fast of lists too."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _one_unknown_field(cls, body: object) -> object:
        """Of the fields that it does not know the first alone, to be refused by name."""
        if not isinstance(body, dict):
            return body
        fields = cls.model_fields
        unknown = [name for name in islice(body, len(fields) + 1) if name not in fields][:1]
        return {name: body[name] for name in (*fields, *unknown) if name in body}


class FieldProblem(BaseModel):
    field: str
    expected: str
    got: str


class Problem(BaseModel):
    """What went wrong (RFC 9457). Some types have further members; docs/api.md names them."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="a relative URI, one for each kind of problem", examples=["/problems/invalid-request"])
    title: str
    status: int
    detail: str = Field(description="for people: its wording may change")
    request_id: str = Field(description="as in X-Request-ID, and in the service's log")
    errors: list[FieldProblem] | None = Field(default=None, description="of an invalid request")


class Options(Body):
    steps: Steps | None = Field(default=None, description="inner steps; the initialization's own where absent")
    seed: Seed = Field(default=0, description="order of minibatches of a large support set")
    label_words: bool = Field(
        default=False,
        strict=True,
        description="let each label's own words (`card_arrival`: card arrival) count as one more example of it; for labels "
        "that say what they mean, worth most with few examples",
    )


E = TypeVar("E")
"""The type of one example: see `service.kinds.registry`."""
P = TypeVar("P")
"""The type of the answer to one input."""


def schema_of(schemas: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's schema in the OpenAPI document, where it has its module's name too if several models share its own."""
    qualified = f"{model.__module__.replace('.', '__')}__{model.__name__}"
    found: dict[str, Any] = schemas[model.__name__ if model.__name__ in schemas else qualified]
    return found


def concrete(generic: Any, of: Any) -> Any:
    """Return a generic body for one type of examples or predictions, under its own name in the OpenAPI document."""
    return create_model(generic.__name__, __base__=generic[of], __doc__=generic.__doc__)


class AdaptRequest(Body, Generic[E]):
    model_config = example_body(support=SUPPORT_EXAMPLE, options={"label_words": True}, name="support desk", tags=["english"])

    support: Annotated[list[E], Field(fail_fast=True)] = Field(description="a handful of labelled examples, one label each")
    initialization: Text = "default"
    base_model: Text | None = Field(
        default=None, description="one of those that this deployment has; absent: the first one that has the initialization"
    )
    options: Options = Options()
    ttl_seconds: Count | None = Field(default=None, description="how long the adapter is kept")
    name: Name | None = Field(default=None, description="absent leaves the name that it has")
    tags: Tags | None = Field(default=None, description="absent leaves the tags that it has")


class ExamplesRequest(Body, Generic[E]):
    model_config = example_body(support=SUPPORT_EXAMPLE[:1], name="support desk, second round")

    support: Annotated[list[E], Field(fail_fast=True)] = Field(description="further examples, beside those of the adapter")
    options: Options = Field(default=Options(), description="each that is absent is as the adapter has it")
    ttl_seconds: Count | None = Field(default=None, description="how long the new adapter is kept")
    name: Name | None = Field(default=None, description="of the new adapter")
    tags: Tags | None = Field(default=None, description="of the new adapter")


class AdaptAnswer(BaseModel):
    model_config = example_body(adapter_id=_ID, status="ready", truncated=[])

    adapter_id: str
    status: Status
    truncated: list[int] = Field(
        description="positions of examples of the request that were cut to the base model's maximum length"
    )


class Warned(BaseModel):
    field: str
    message: str


class DryRunAnswer(BaseModel):
    """What a request would give; nothing was written."""

    model_config = example_body(
        adapter_id=_ID,
        status="new",
        examples=4,
        labels={"card_lost": 2, "currencies": 2},
        steps=2,
        truncated=[],
        warnings=[{"field": "support[3].input", "message": "the same example as support[1]"}],
    )

    adapter_id: str
    status: Literal["new"] | Status
    examples: int
    labels: dict[str, int] = Field(description="examples of each label")
    steps: int | None = Field(description="null where the support set decides")
    truncated: list[int]
    warnings: list[Warned]


class AdapterChanges(Body):
    model_config = example_body(name="support desk", tags=["english", "production"])

    name: Name | None = Field(default=None, description="null takes it away, absent leaves it")
    tags: Tags = Field(default=[], description="all of them; absent leaves them")


class PredictRequest(Body):
    model_config = example_body(adapter_id="support-desk.production", inputs=["the cash machine ate my card"], top_k=1)

    adapter_id: AliasName = Field(description="an adapter's id, or an alias")
    inputs: Annotated[list[Text], Field(fail_fast=True)]
    top_k: Count | None = Field(default=None, description="only so many labels, the most probable ones first")


class PredictAnswer(BaseModel, Generic[P]):
    model_config = example_body(
        adapter_id=_ID,
        alias="support-desk.production",
        digest=_DIGEST,
        predictions=[{"label": "card_lost", "probabilities": {"card_lost": 0.97}}],
        truncated=[],
    )

    adapter_id: str
    alias: str | None = Field(default=None, description="where one was asked for")
    digest: str = Field(description="sha256 of the adapter's weights")
    predictions: list[P] = Field(description="in the order of the inputs")
    truncated: list[int] = Field(description="positions of inputs that were cut to the base model's maximum length")


class LabelScore(BaseModel):
    precision: float = Field(description="0 where it was never predicted")
    recall: float = Field(description="0 where no example has it")
    f1: float
    examples: int


class ScoreAnswer(BaseModel):
    model_config = example_body(
        adapter_id=_ID,
        digest=_DIGEST,
        examples=2,
        accuracy=0.5,
        macro_f1=1 / 3,
        labels={
            "card_lost": {"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "examples": 2},
            "currencies": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "examples": 0},
        },
        confusion={"card_lost": {"card_lost": 1, "currencies": 1}},
        mistakes=[1],
    )

    adapter_id: str
    digest: str = Field(description="sha256 of the adapter's weights")
    examples: int
    accuracy: float
    macro_f1: float = Field(description="the mean f1 of `labels`")
    labels: dict[str, LabelScore] = Field(description="those that examples have or that were predicted")
    confusion: dict[str, dict[str, int]] = Field(description="true label: predicted label: how often")
    mistakes: list[int] = Field(description="positions of examples that were labelled otherwise")


class AdapterView(BaseModel):
    model_config = example_body(
        adapter_id=_ID,
        kind="text-classification",
        base_model="sentence-transformers/all-MiniLM-L6-v2",
        status="ready",
        name="support desk",
        tags=["english"],
        parent=None,
        initialization="default",
        initialization_digest="5e1f" * 16,
        labels=["card_lost", "currencies"],
        examples=4,
        steps=2,
        seed=0,
        label_words=True,
        precision="float32",
        attempt=1,
        support_loss=[0.41, 0.18],
        truncated=[],
        timings={"queue": 4.1, "tokenize": 0.6, "inner_loop": 180.2, "store": 1.2},
        digest=_DIGEST,
        error=None,
        last_error=None,
        pinned=False,
        recovery_ms=None,
        created_at=1795651200.0,
        expires_at=1796256000.0,
    )

    adapter_id: str
    kind: str = Field(description="of task")
    base_model: str | None = Field(description="null where this service does not have it")
    status: Status
    name: str | None
    tags: list[str]
    parent: str | None = Field(description="the adapter whose examples this one goes on from")
    initialization: str
    initialization_digest: str
    labels: list[str]
    examples: int
    steps: int | None = Field(description="null where the support set decides, until the adapter is ready")
    seed: int
    label_words: bool
    precision: str
    attempt: int
    support_loss: list[float] = Field(description="before each inner step")
    truncated: list[int]
    timings: dict[str, float] = Field(description="milliseconds by stage: queue, tokenize, inner_loop, store")
    digest: str | None
    error: str | None
    last_error: str | None = Field(description="of an unfinished job: why its last attempt was not the end of it")
    pinned: bool
    recovery_ms: int | None = Field(description="from the last sign of a worker that was lost to the end of the job")
    created_at: float = Field(description="Unix time in seconds")
    expires_at: float | None = Field(description="Unix time in seconds; null: pinned")


class AdapterPage(BaseModel):
    model_config = example_body(adapters=[], next_cursor=None)

    adapters: list[AdapterView] = Field(description="newest first")
    next_cursor: str | None = Field(description="of the next page; null at the end")


class AliasTarget(Body):
    model_config = example_body(adapter_id=_ID, expected=None)

    adapter_id: AdapterId
    expected: AdapterId | None = Field(
        default=None, description="where the alias must point now; null: nowhere; absent: anywhere or nowhere"
    )


class AliasMove(BaseModel):
    model_config = example_body(alias="support-desk.production", adapter_id=_ID, previous=None)

    alias: str
    adapter_id: str
    previous: str | None = Field(description="where it pointed before; null: nowhere")


class AliasView(BaseModel):
    model_config = example_body(alias="support-desk.production", adapter_id=_ID, updated_at=1795651200.0)

    alias: str
    adapter_id: str
    updated_at: float = Field(description="Unix time in seconds")


class AliasPage(BaseModel):
    model_config = example_body(aliases=[], next_cursor=None)

    aliases: list[AliasView] = Field(description="in the order of their names")
    next_cursor: str | None = Field(description="of the next page; null at the end")
