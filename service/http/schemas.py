"""The models of request and response bodies.

Limits that depend on the settings are not in these models: `service.field_checks` checks them, and `service.http.openapi` adds them
to the OpenAPI document.
"""

from itertools import islice
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, create_model, model_validator
from pydantic_core import PydanticCustomError

from worker.ledger.messages import LabelWords, Status


def _integral_float_to_int(value: object) -> object:
    """Convert 3.0 to 3: JSON does not distinguish them. Other values stay as they are."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _bool_or_auto(value: object) -> object:
    """Refuse 1 and 0, which a `Literal` of Python would accept as True and False."""
    if isinstance(value, bool) or value == "auto":
        return value
    raise PydanticCustomError("bool_or_auto", "Input should be true, false or 'auto'")


# This pattern is only documentation. `service/field_checks.py` checks it, with an error that names the field and the value.
Text = Annotated[str, StringConstraints(strict=True), Field(json_schema_extra={"pattern": r"^[^\x00]*$"})]
# The limits come before the validator, because pydantic leaves limits that come after it out of the schema.
Count = Annotated[int, Field(strict=True, ge=1), BeforeValidator(_integral_float_to_int)]
Steps = Annotated[int, Field(strict=True, ge=0, le=100), BeforeValidator(_integral_float_to_int)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**31), BeforeValidator(_integral_float_to_int)]
WordsSetting = Annotated[Literal[True, False, "auto"], BeforeValidator(_bool_or_auto)]
AdapterId = Annotated[
    str,
    StringConstraints(strict=True, max_length=64, pattern=r"^[a-z0-9]+$"),
    Field(examples=["a3f0c1d2e4b5a69788776655443322110ffeeddcc"]),
]
AliasName = Annotated[
    str, StringConstraints(strict=True, pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$"), Field(examples=["support-desk.production"])
]
Name = Annotated[
    Text, Field(max_length=100, examples=["support desk"], description="a name for people; it does not affect the adapter's id")
]
Tag = Annotated[Text, Field(max_length=64, examples=["english"])]
Tags = Annotated[
    list[Tag], Field(fail_fast=True, max_length=16, description="tags for people and filters; they do not affect the adapter's id")
]

_ID, _DIGEST = "a3f0c1d2e4b5a69788776655443322110ffeeddcc", "9c0d" * 16
SUPPORT_EXAMPLE = [
    {"input": "My card was swallowed by the machine", "label": "card_lost"},
    {"input": "Somebody took my wallet with the card", "label": "card_lost"},
    {"input": "Which currencies can I hold?", "label": "currencies"},
    {"input": "Do you support euros?", "label": "currencies"},
]

_WARNING = {"field": "support[3]", "message": "the same example as support[1]"}

TEXT_PATTERN = r"^[^\u0000]*\S[^\u0000]*$"
"""Matches texts that are not blank and have no NUL; for the OpenAPI document."""


def example_body(**content: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [content]})


class Body(BaseModel):
    """A request body that rejects unknown fields.

    Subclasses stop validating a list at its first error (`fail_fast`), because only one error is reported and a large body could
    have a million.
    """

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _keep_one_unknown_field(cls, body: object) -> object:
        """Drop all unknown fields but the first one, which the error then names."""
        if not isinstance(body, dict):
            return body
        fields = cls.model_fields
        unknown = [name for name in islice(body, len(fields) + 1) if name not in fields][:1]
        return {name: body[name] for name in (*fields, *unknown) if name in body}


class FieldProblem(BaseModel):
    field: str = Field(description="path of the field, such as `support[3].label`")
    expected: str
    got: str = Field(description="the value that came, cut to 80 characters")


class Problem(BaseModel):
    """A problem document (RFC 9457). Some types have further members; docs/api.md lists them."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(
        description="relative URI of the type of problem; decide by this member", examples=["/problems/invalid-request"]
    )
    title: str = Field(description="the type of problem for people; its wording may change")
    status: int = Field(description="HTTP status")
    detail: str = Field(description="this problem for people; its wording may change")
    request_id: str = Field(description="id of the request, as in `X-Request-ID` and in the service's log")
    errors: list[FieldProblem] | None = Field(default=None, description="the invalid field; only for `/problems/invalid-request`")


class Options(Body):
    steps: Steps | None = Field(default=None, description="number of inner steps; absent: the initialization decides")
    seed: Seed = Field(
        default=0, description="seed of the inner loop's random choices, such as the split of a large support set into parts"
    )
    label_words: WordsSetting = Field(
        default="auto",
        description="also use each label's own words (`card_arrival`: card arrival) as one more example of it; `auto`: only if "
        "the words alone predict the examples' labels better than guessing, which codes seldom do",
    )


E = TypeVar("E")
"""The type of one example, see `service.kinds.registry`."""
P = TypeVar("P")
"""The type of the answer to one input."""


def schema_of(schemas: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of `model` from the OpenAPI document's `schemas`.

    Its key is the model's name or, if several models have that name, the name with its module as a prefix.
    """
    qualified = f"{model.__module__.replace('.', '__')}__{model.__name__}"
    found: dict[str, Any] = schemas[model.__name__ if model.__name__ in schemas else qualified]
    return found


def concrete(generic: Any, of: Any) -> Any:
    """Return the body model `generic[of]`, where `of` is a type of examples or of predictions.

    Its name and docstring are those of `generic`, so that OpenAPI shows the name without the type.
    """
    return create_model(generic.__name__, __base__=generic[of], __doc__=generic.__doc__)


class AdaptRequest(Body, Generic[E]):
    model_config = example_body(support=SUPPORT_EXAMPLE, options={"seed": 0}, name="support desk", tags=["english"])

    support: Annotated[list[E], Field(fail_fast=True)] = Field(description="labelled examples, one label each")
    initialization: Text = "default"
    base_model: Text | None = Field(
        default=None, description="one of this deployment's base models; absent: the first one that has the initialization"
    )
    options: Options = Options()
    ttl_seconds: Count | None = Field(
        default=None, description="time to live of the adapter, in seconds; absent: the service's default"
    )
    name: Name | None = Field(default=None, description="a name for people; absent: an existing adapter keeps its name")
    tags: Tags | None = Field(default=None, description="tags for people and filters; absent: an existing adapter keeps its tags")


class ExamplesRequest(Body, Generic[E]):
    model_config = example_body(support=SUPPORT_EXAMPLE[:1], name="support desk, second round")

    support: Annotated[list[E], Field(fail_fast=True)] = Field(description="examples to add to those of the adapter")
    options: Options = Field(default=Options(), description="an absent option is taken from the adapter")
    ttl_seconds: Count | None = Field(
        default=None, description="time to live of the new adapter, in seconds; absent: the service's default"
    )
    name: Name | None = Field(default=None, description="name of the new adapter, for people")
    tags: Tags | None = Field(default=None, description="tags of the new adapter, for people and filters")


class Warned(BaseModel):
    """A warning about examples that are accepted, but may contain a mistake."""

    field: str = Field(description="path of the field, such as `support[3].input`; `support` if there is no single example")
    message: str = Field(description="the warning for people, without texts of examples; its wording may change")


Warnings = Annotated[
    list[Warned], Field(description="warnings about the examples; of each sort the first ten, and then the number of the others")
]


class AdaptAnswer(BaseModel):
    model_config = example_body(adapter_id=_ID, status="ready", truncated=[], warnings=[_WARNING])

    adapter_id: str
    status: Status
    truncated: list[int] = Field(
        description="positions in `support` of examples that were truncated to the base model's maximum length"
    )
    warnings: Warnings


class DryRunAnswer(BaseModel):
    """The answer to a dry run: the adapter that the request would create. Nothing was written."""

    model_config = example_body(
        adapter_id=_ID,
        status="new",
        examples=4,
        labels={"card_lost": 2, "currencies": 2},
        steps=2,
        truncated=[],
        warnings=[_WARNING],
    )

    adapter_id: str
    status: Literal["new"] | Status = Field(description="`new`, or the status of the adapter that exists already")
    examples: int = Field(description="number of examples in the support set, including those of a parent adapter")
    labels: dict[str, int] = Field(description="number of examples of each label")
    steps: int | None = Field(description="number of inner steps; null: decided while adapting, by accuracy on the support set")
    truncated: list[int] = Field(
        description="positions in `support` of examples that would be truncated to the base model's maximum length"
    )
    warnings: Warnings


class AdapterChanges(Body):
    model_config = example_body(name="support desk", tags=["english", "production"])

    name: Name | None = Field(default=None, description="null removes the name, absent keeps it")
    tags: Tags = Field(default=[], description="replaces all tags; absent keeps them")


class PredictRequest(Body):
    model_config = example_body(adapter_id="support-desk.production", inputs=["the cash machine ate my card"], top_k=1)

    adapter_id: AliasName = Field(description="an adapter's id, or an alias")
    inputs: Annotated[list[Text], Field(fail_fast=True)] = Field(description="texts to predict for")
    top_k: Count | None = Field(default=None, description="return only so many labels, the most probable first; absent: all")


class PredictAnswer(BaseModel, Generic[P]):
    model_config = example_body(
        adapter_id=_ID,
        alias="support-desk.production",
        digest=_DIGEST,
        predictions=[{"label": "card_lost", "probabilities": {"card_lost": 0.97}}],
        truncated=[],
    )

    adapter_id: str = Field(description="the adapter that answered")
    alias: str | None = Field(default=None, description="the alias in the request; null if it named an adapter by its id")
    digest: str = Field(description="SHA-256 of the adapter's weights, hexadecimal")
    predictions: list[P] = Field(description="one for each input, in the same order")
    truncated: list[int] = Field(description="positions of inputs that were truncated to the base model's maximum length")


class LabelScore(BaseModel):
    precision: float = Field(description="0 if the label was never predicted")
    recall: float = Field(description="0 if no example has the label")
    f1: float = Field(description="harmonic mean of precision and recall; 0 if either is 0")
    examples: int = Field(description="number of examples with this label")


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
    digest: str = Field(description="SHA-256 of the adapter's weights, hexadecimal")
    examples: int = Field(description="number of examples")
    accuracy: float = Field(description="share of examples whose predicted label is the true one")
    macro_f1: float = Field(description="mean f1 of `labels`")
    labels: dict[str, LabelScore] = Field(description="scores of each label that an example has or that was predicted")
    confusion: dict[str, dict[str, int]] = Field(description="number of examples by true label, then by predicted label")
    mistakes: list[int] = Field(description="positions of examples whose predicted label is wrong")


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
        label_words="auto",
        label_words_used=True,
        label_words_gain=0.41,
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
    kind: str = Field(description="kind of task, such as `text-classification`")
    base_model: str | None = Field(description="null if this service does not have it")
    status: Status
    name: str | None
    tags: list[str]
    parent: str | None = Field(description="the adapter whose examples this one extends; null: none")
    initialization: str
    initialization_digest: str
    labels: list[str]
    examples: int = Field(description="number of examples in the support set")
    steps: int | None = Field(
        description="number of inner steps; null until the adapter is ready if accuracy on the support set decides"
    )
    seed: int
    label_words: LabelWords = Field(description="the requested setting")
    label_words_used: bool | None = Field(
        description="whether each label's own words are one more example of it; null until the setting `auto` has decided"
    )
    label_words_gain: float | None = Field(
        description="of `auto`: how much better than guessing the words alone predict the examples' labels, in nats per example; "
        "they are used if it is above 0.05; null if they cannot be examples (two labels have the same words for the base model) or "
        "one more example would not matter (ten examples of a label, on average)"
    )
    precision: str = Field(description="number format of the base model: `float32` or `bfloat16`")
    attempt: int = Field(description="number of the job's current or last attempt; 0: none yet")
    support_loss: list[float] = Field(description="loss on the support set before each inner step")
    truncated: list[int] = Field(
        description="positions in the stored support set of examples that were truncated to the base model's maximum length"
    )
    timings: dict[str, float] = Field(description="milliseconds by stage: queue, tokenize, inner_loop, store")
    digest: str | None = Field(description="SHA-256 of the adapter's weights, hexadecimal; null until the adapter is ready")
    error: str | None = Field(description="why the job failed; null if it did not")
    last_error: str | None = Field(description="of an unfinished job: why its last attempt did not succeed")
    pinned: bool = Field(description="true if the adapter does not expire and its weights are not evicted")
    recovery_ms: int | None = Field(
        description="milliseconds from a lost worker's last sign of life to the end of the job; null if no worker was lost"
    )
    created_at: float = Field(description="Unix time in seconds")
    expires_at: float | None = Field(description="Unix time in seconds; null if the adapter is pinned")


class AdapterPage(BaseModel):
    model_config = example_body(adapters=[], next_cursor=None)

    adapters: list[AdapterView] = Field(description="newest first")
    next_cursor: str | None = Field(description="value of `cursor` for the next page; null at the end")


class AliasTarget(Body):
    model_config = example_body(adapter_id=_ID, expected=None)

    adapter_id: AdapterId
    expected: AdapterId | None = Field(
        default=None,
        description="move the alias only if it points at this adapter now; null: only if it does not exist; absent: in any case",
    )


class AliasMove(BaseModel):
    model_config = example_body(alias="support-desk.production", adapter_id=_ID, previous=None)

    alias: str
    adapter_id: str
    previous: str | None = Field(description="the adapter that the alias pointed at before; null if the alias is new")


class AliasView(BaseModel):
    model_config = example_body(alias="support-desk.production", adapter_id=_ID, updated_at=1795651200.0)

    alias: str
    adapter_id: str
    updated_at: float = Field(description="when the alias was last moved, Unix time in seconds")


class AliasEntry(BaseModel):
    model_config = example_body(adapter_id=_ID, since=1795651200.0)

    adapter_id: str
    since: float = Field(description="when the alias began to point at it, Unix time in seconds")


class AliasDetail(AliasView):
    model_config = example_body(alias="support-desk.production", adapter_id=_ID, updated_at=1795651200.0, history=[])

    history: list[AliasEntry] = Field(description="where the alias pointed before, the latest first; at most 20 entries")


class AliasPage(BaseModel):
    model_config = example_body(aliases=[], next_cursor=None)

    aliases: list[AliasView] = Field(description="sorted by name")
    next_cursor: str | None = Field(description="value of `cursor` for the next page; null at the end")
