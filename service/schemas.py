"""The shapes of HTTP bodies. Limits that are settings are checked in `limits`."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from worker.messages import Status

Text = Annotated[str, StringConstraints(strict=True)]


AdapterId = Annotated[str, StringConstraints(strict=True, max_length=64, pattern=r"^[a-z0-9]+$")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Example(_Body):
    input: Text = Field(examples=["My card was swallowed by the machine"])
    label: Text = Field(examples=["card_lost"])


class Options(_Body):
    steps: int | None = Field(
        default=None, strict=True, ge=0, le=100, description="inner steps; the initialization's own where absent"
    )
    seed: int = Field(default=0, strict=True, ge=0, lt=2**31, description="order of minibatches of a large support set")
    label_words: bool = Field(
        default=False,
        strict=True,
        description="let each label's own words (`card_arrival`: card arrival) count as one more example of it; for labels "
        "that say what they mean, worth most with few examples",
    )


class AdaptRequest(_Body):
    support: list[Example] = Field(description="a handful of labelled examples, one label each")
    initialization: Text = "default"
    options: Options = Options()
    ttl_seconds: int | None = Field(default=None, strict=True, ge=1, description="how long the adapter is kept")


class AdaptAnswer(BaseModel):
    adapter_id: str
    status: Status
    truncated: list[int] = Field(description="positions of examples that were cut to the base model's maximum length")


class PredictRequest(_Body):
    adapter_id: AdapterId
    inputs: list[Text]


class Prediction(BaseModel):
    label: str
    probabilities: dict[str, float]


class PredictAnswer(BaseModel):
    adapter_id: str
    digest: str = Field(description="sha256 of the adapter's weights")
    predictions: list[Prediction] = Field(description="in the order of the inputs")
    truncated: list[int] = Field(description="positions of inputs that were cut to the base model's maximum length")


class AdapterView(BaseModel):
    adapter_id: str
    status: Status
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
    adapters: list[AdapterView] = Field(description="newest first")
    next_cursor: str | None


class InitializationView(BaseModel):
    name: str
    digest: str
    base_model: str
    delta: dict[str, object]
    algorithm: str
    steps: int
    steps_by_shots: dict[int, int]
    hard_steps: dict[str, int | float] | None = Field(
        description="`steps` for a support set of `shots` a label or more whose own leave-one-out accuracy is below `below`"
    )
    optimizer: str
    objective: dict[str, float]
    temperature: float
    max_length: int


class InitializationList(BaseModel):
    initializations: list[InitializationView]


class UsageView(BaseModel):
    tenant: str
    adapters: int = Field(description="that there is a record of, whatever its status")
    bytes: int = Field(description="of weights that are ready, and most that those being made will have")
    jobs: int = Field(description="that are queued or running")
    requests_this_minute: int = Field(description="by the clock of the records")
    adaptations: int = Field(description="jobs taken, since the records began")
    predictions: int = Field(description="inputs answered, since the records began")
    limits: dict[str, int] = Field(description="by the name of the setting; 0: none")
